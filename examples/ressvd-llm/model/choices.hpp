// SPDX-License-Identifier: Apache-2.0
//
// Multiple choice as lm-evaluation-harness scores it: by the log-probabilities of the answers as
// continuations of the question.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/tasks.hpp"
#include "io/tokenizer.hpp"
#include "model/evaluation.hpp"

namespace ressvd_llm {

// Token ids of a context and of what follows it; neither is empty.
struct continuation {
  std::vector<std::int32_t> context;
  std::vector<std::int32_t> text;
};

// The harness's cut: white space at the end of the context moves to the continuation, both are
// encoded as one text behind the prefix, and what is longer than the encoded context is the
// continuation. An empty context is `first`, the model's beginning- or end-of-sequence token.
// Throws std::invalid_argument where the cut leaves a side without a token.
continuation encode_continuation(const tokenizer& tokens, std::span<const std::int32_t> prefix,
                                 std::span<const std::int32_t> first, std::string_view context,
                                 std::string_view text);

struct choice_options {
  // Tokens that the model sees at a time: a longer context loses its beginning.
  std::int64_t max_length = 2048;
  evaluation_options evaluation = {};
};

// log p(text | context) of each in nats. Equal inputs pass through the model once. Throws
// std::invalid_argument for a continuation longer than max_length, and std::runtime_error for a
// logit that is not finite.
std::vector<double> log_probabilities(const language_model& model, forward_engine& engine,
                                      std::span<const continuation> continuations,
                                      const choice_options& options = {});

struct accuracy {
  std::int64_t right = 0;
  std::int64_t items = 0;

  double value() const;
  // √(p(1 − p)/(n − 1)); 0 for a single item.
  double standard_error() const;
};

// Accuracies by what is highest of each item: the log-probability, or it divided by the choice's
// length in characters (the harness's acc_norm) or bytes (acc_bytes).
struct task_result {
  std::string task;
  accuracy plain;
  accuracy by_characters;
  accuracy by_bytes;
};

// In the order of the tasks' first items. `log_probabilities` has those of all choices, one item
// after the other.
std::vector<task_result> score_tasks(std::span<const choice_item> items,
                                     std::span<const double> log_probabilities);

} // namespace ressvd_llm
