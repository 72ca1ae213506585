// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "model/forward.hpp"
#include "model/language_model.hpp"

namespace ressvd_llm {

// −log softmax(row)[target] of every row of logits (targets.size() × vocab), in float64. Throws
// std::runtime_error, with the row, for a logit that is not finite.
std::vector<double> next_token_losses(const float* logits, std::span<const std::int32_t> targets,
                                      std::int64_t vocab);

// KL(p‖q) = Σ p·(log p − log q) of every row, p and q the softmax of the logits of a reference and
// of another model (rows × vocab each), in float64. Throws like next_token_losses.
std::vector<double> kl_divergences(const float* reference, const float* other, std::int64_t rows,
                                   std::int64_t vocab);

// The same where an engine has the logits.
std::vector<double> next_token_losses(const engine_matrix& logits,
                                      std::span<const std::int32_t> targets);
std::vector<double> kl_divergences(const engine_matrix& reference, const engine_matrix& other);

// ‖a − b‖_F/‖a‖_F of matrices that come in pieces, in double. 0 without any piece, or for a = 0.
class relative_error_sum {
 public:
  void add(const engine_matrix& a, const engine_matrix& b);
  double value() const;

 private:
  square_sums sums_;
};

// Fraction done, from 0 to 1; an empty function is not called.
using progress_function = std::function<void(double)>;

// How a text is cut: window i is ids[i·length, (i+1)·length + overlap), and what does not fill the
// last window is dropped. Every token of a window but its first is predicted from the window's
// tokens before it. overlap 0 is the field's protocol (each window predicts length − 1 tokens);
// with overlap 1 a window also holds the first token of the next and predicts `length` tokens, so
// that every token of the text but the first counts once.
struct window_options {
  std::int64_t length = 2048;
  std::int64_t overlap = 0;     // 0 or 1
  std::int64_t max_windows = 0; // use only the first so many; 0: all
};

// Throws std::invalid_argument for a length below 2 (1 with overlap), for another overlap, and for
// a text shorter than one window.
std::int64_t count_windows(std::int64_t tokens, const window_options& options);

// The inputs of the first count_windows() windows, length − 1 + overlap each, and what they should
// predict.
struct token_windows {
  std::int64_t count = 0;
  std::int64_t length = 0;           // inputs of a window
  std::vector<std::int32_t> inputs;  // count × length
  std::vector<std::int32_t> targets; // count × length
};

token_windows cut_windows(std::span<const std::int32_t> ids, const window_options& options);

struct evaluation_options {
  // Hidden states held at a time; the windows are taken in as many rounds as that needs.
  std::uint64_t memory_limit = std::uint64_t{2} << 30;
  // The first so many predictions of each window do not count: what precedes them is context alone.
  std::int64_t context = 0;
  progress_function progress = {};
};

struct perplexity_result {
  double perplexity = 0.0; // exp(mean_loss)
  double mean_loss = 0.0;  // nats a predicted token
  std::int64_t windows = 0;
  std::int64_t predicted = 0; // tokens
  double seconds = 0.0;
};

// exp of the mean loss over all predicted tokens. The engine must have been made for the model's
// config. Throws std::runtime_error for a logit that is not finite, std::invalid_argument where no
// prediction counts.
perplexity_result perplexity(const language_model& model, forward_engine& engine,
                             const token_windows& windows, const evaluation_options& options = {});

// Layers [first, last) of the model. `done`, if any, is called with the number of each.
void run_layers(const language_model& model, forward_engine& engine, engine_matrix& hidden,
                std::int64_t window_length, std::int64_t first, std::int64_t last,
                const std::function<void(std::int64_t layer)>& done = {});

// The hidden states after the last layer (before the final norm).
engine_matrix final_hidden(const language_model& model, forward_engine& engine,
                           const token_windows& windows);

// Tokens whose logits are held at a time, of so many.
std::int64_t logits_block(std::int64_t vocab, std::int64_t tokens);

// Calls body(logits, first) for blocks of consecutive tokens, with their logits in a buffer of
// bounded size.
void for_each_logits(
    const language_model& model, forward_engine& engine, const engine_matrix& hidden,
    const std::function<void(const engine_matrix& logits, std::int64_t first)>& body);

} // namespace ressvd_llm
