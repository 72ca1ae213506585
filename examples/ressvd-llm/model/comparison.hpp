// SPDX-License-Identifier: Apache-2.0
//
// Models side by side on the same texts: what a compressed model lost against the original and what
// it gained.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "model/device.hpp"
#include "model/evaluation.hpp"
#include "model/language_model.hpp"

namespace ressvd_llm {

struct compared_text {
  std::string name;
  token_windows windows;
};

// One model on one text.
struct text_figures {
  double perplexity = 0;
  double divergence = 0; // mean KL(original‖model) of the next-token distributions
};

struct model_figures {
  std::int64_t parameters = 0;
  std::uint64_t bytes = 0;         // of the checkpoint's files
  std::vector<text_figures> texts; // of each text
  std::vector<double> layer_errors; // ‖h_l − ĥ_l‖_F/‖h_l‖_F over all texts, after each layer
  double tokens_per_second = 0;     // of the forward pass with logits, the best of several
};

// Throws usage_error for models that differ in vocabulary, hidden size or number of layers.
void require_alike(const std::vector<language_model>& models);

// The figures of every model, in the order given, with the first as the original. All models go
// through the texts together, layer by layer: hidden states are held of one group of windows and
// every model. Throws like require_alike, and std::runtime_error for a logit that is not finite.
std::vector<model_figures> compare_models(const std::vector<language_model>& models,
                                          const std::vector<compared_text>& texts,
                                          const progress_function& progress = {},
                                          const std::shared_ptr<device>& card = {});

// The same on one text, without the rest. On the CPU, or on the card.
std::vector<text_figures> compare_on_text(const std::vector<language_model>& models,
                                          const token_windows& windows,
                                          const std::shared_ptr<device>& card = {});

// Bytes that this holds beside the models' weights: hidden states, logits and buffers of the
// passes.
std::uint64_t comparison_buffers(const model_config& config, std::int64_t windows,
                                 std::int64_t window_length, std::size_t models);

} // namespace ressvd_llm
