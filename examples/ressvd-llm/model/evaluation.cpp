// SPDX-License-Identifier: Apache-2.0
#include "model/evaluation.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <stdexcept>
#include <string>

#include <Eigen/Core>

#include "model/parallel.hpp"

namespace ressvd_llm {

namespace {

// Logits held at a time: about 16 MiB, but enough tokens for products at full speed.
constexpr std::int64_t logits_elements = std::int64_t{1} << 22;
constexpr std::int64_t min_logits_rows = 512;

using const_row = Eigen::Map<const Eigen::ArrayXf>;

// The product with zero is NaN exactly for infinities and NaNs, and sums of zeros stay zero.
bool all_finite(const const_row& row) {
  return (row * 0.0f).sum() == 0.0f;
}

void require_finite(const float* logits, std::int64_t rows, std::int64_t vocab) {
  for (std::int64_t i = 0; i < rows; ++i) {
    const const_row row(logits + i * vocab, vocab);
    if (all_finite(row)) continue;
    std::int64_t at = 0;
    while (std::isfinite(row[at]))
      ++at;
    throw std::runtime_error("logit " + std::to_string(at) + " at position " + std::to_string(i) +
                             " is not finite: the model does not compute");
  }
}

// log Σ exp(row), row widened to float64 in `wide` first: the conversion is not vectorised together
// with the exponential.
double log_sum_exp(const const_row& row, Eigen::ArrayXd& wide) {
  wide = row.cast<double>();
  const double peak = wide.maxCoeff();
  return peak + std::log((wide - peak).exp().sum());
}

std::int64_t row_grain(std::int64_t vocab) {
  return std::max<std::int64_t>(1, 16'384 / vocab);
}

} // namespace

std::vector<double> next_token_losses(const float* logits, std::span<const std::int32_t> targets,
                                      std::int64_t vocab) {
  const auto rows = static_cast<std::int64_t>(targets.size());
  for (const std::int32_t target : targets)
    if (target < 0 || target >= vocab)
      throw std::invalid_argument("next_token_losses: target " + std::to_string(target) +
                                  " outside the vocabulary of " + std::to_string(vocab));
  require_finite(logits, rows, vocab);
  std::vector<double> losses(targets.size());
  parallel_for(rows, row_grain(vocab), [&](std::int64_t first, std::int64_t last) {
    Eigen::ArrayXd wide;
    for (std::int64_t i = first; i < last; ++i) {
      const const_row row(logits + i * vocab, vocab);
      const auto index = static_cast<std::size_t>(i);
      losses[index] = log_sum_exp(row, wide) - static_cast<double>(row[targets[index]]);
    }
  });
  return losses;
}

std::vector<double> kl_divergences(const float* reference, const float* other, std::int64_t rows,
                                   std::int64_t vocab) {
  require_finite(reference, rows, vocab);
  require_finite(other, rows, vocab);
  std::vector<double> result(static_cast<std::size_t>(rows));
  parallel_for(rows, row_grain(vocab), [&](std::int64_t first, std::int64_t last) {
    Eigen::ArrayXd log_p, log_q;
    for (std::int64_t i = first; i < last; ++i) {
      // Afterwards the arrays hold the logits in float64; the sums make them log-probabilities.
      const double p_sum = log_sum_exp(const_row(reference + i * vocab, vocab), log_p);
      const double q_sum = log_sum_exp(const_row(other + i * vocab, vocab), log_q);
      log_p -= p_sum;
      log_q -= q_sum;
      const double divergence = (log_p.exp() * (log_p - log_q)).sum();
      // Never negative but for rounding.
      result[static_cast<std::size_t>(i)] = std::max(divergence, 0.0);
    }
  });
  return result;
}

std::vector<double> next_token_losses(const engine_matrix& logits,
                                      std::span<const std::int32_t> targets) {
  if (std::ssize(targets) != logits.rows())
    throw std::invalid_argument("next_token_losses: " + std::to_string(targets.size()) +
                                " targets for " + std::to_string(logits.rows()) + " tokens");
  return logits.empty() ? std::vector<double>{} : logits.storage()->losses(targets, logits.cols());
}

std::vector<double> kl_divergences(const engine_matrix& reference, const engine_matrix& other) {
  if (reference.rows() != other.rows() || reference.cols() != other.cols())
    throw std::invalid_argument("kl_divergences: logits of two sizes");
  if (reference.empty()) return {};
  return reference.storage()->divergences(*other.storage(), reference.rows(), reference.cols());
}

void relative_error_sum::add(const engine_matrix& a, const engine_matrix& b) {
  const square_sums more = compare(a, b);
  sums_.difference += more.difference;
  sums_.reference += more.reference;
}

double relative_error_sum::value() const {
  return sums_.reference > 0 ? std::sqrt(sums_.difference / sums_.reference) : 0;
}

std::int64_t count_windows(std::int64_t tokens, const window_options& options) {
  if (options.overlap != 0 && options.overlap != 1)
    throw std::invalid_argument("windows: overlap " + std::to_string(options.overlap) +
                                " is neither 0 nor 1");
  if (options.length + options.overlap < 2)
    throw std::invalid_argument("windows: a window of " + std::to_string(options.length) +
                                " tokens predicts nothing");
  if (options.max_windows < 0)
    throw std::invalid_argument("windows: max_windows " + std::to_string(options.max_windows) +
                                " is negative");
  const std::int64_t count = (tokens - options.overlap) / options.length;
  if (count < 1)
    throw std::invalid_argument("windows: " + std::to_string(tokens) +
                                " tokens do not fill one window of " +
                                std::to_string(options.length + options.overlap));
  return options.max_windows == 0 ? count : std::min(count, options.max_windows);
}

token_windows cut_windows(std::span<const std::int32_t> ids, const window_options& options) {
  token_windows result;
  result.count = count_windows(static_cast<std::int64_t>(ids.size()), options);
  result.length = options.length - 1 + options.overlap;
  for (std::int64_t i = 0; i < result.count; ++i) {
    const auto start = ids.begin() + i * options.length;
    result.inputs.insert(result.inputs.end(), start, start + result.length);
    result.targets.insert(result.targets.end(), start + 1, start + 1 + result.length);
  }
  return result;
}

perplexity_result perplexity(const language_model& model, forward_engine& engine,
                             const token_windows& windows, const evaluation_options& options) {
  if (options.context < 0 || options.context >= windows.length)
    throw std::invalid_argument("perplexity: a context of " + std::to_string(options.context) +
                                " where windows have " + std::to_string(windows.length) +
                                " predictions");
  const auto begin = std::chrono::steady_clock::now();
  const std::int64_t layers = model.config().layers;
  const std::uint64_t window_bytes = static_cast<std::uint64_t>(windows.length) *
                                     static_cast<std::uint64_t>(model.config().hidden_size) *
                                     sizeof(float);
  const std::int64_t round = std::max<std::int64_t>(
      1,
      static_cast<std::int64_t>(options.memory_limit / std::max<std::uint64_t>(window_bytes, 1)));
  double sum = 0.0;
  for (std::int64_t first = 0; first < windows.count; first += round) {
    const std::int64_t count = std::min(round, windows.count - first);
    const std::int64_t tokens = count * windows.length;
    const std::span<const std::int32_t> inputs(windows.inputs.data() + first * windows.length,
                                               static_cast<std::size_t>(tokens));
    const std::int32_t* targets = windows.targets.data() + first * windows.length;
    engine_matrix hidden = engine.embed(model.outer(), inputs, windows.length);
    run_layers(model, engine, hidden, windows.length, 0, layers, [&](std::int64_t layer) {
      if (options.progress)
        options.progress((static_cast<double>(first) + static_cast<double>(count) *
                                                           static_cast<double>(layer + 1) /
                                                           static_cast<double>(layers + 1)) /
                         static_cast<double>(windows.count));
    });
    for_each_logits(model, engine, hidden, [&](const engine_matrix& logits, std::int64_t start) {
      const std::vector<double> losses =
          next_token_losses(logits, {targets + start, static_cast<std::size_t>(logits.rows())});
      for (std::int64_t i = 0; i < logits.rows(); ++i) {
        if ((start + i) % windows.length >= options.context)
          sum += losses[static_cast<std::size_t>(i)];
      }
    });
  }
  if (options.progress) options.progress(1.0);
  perplexity_result result;
  result.windows = windows.count;
  result.predicted = windows.count * (windows.length - options.context);
  result.mean_loss = sum / static_cast<double>(result.predicted);
  result.perplexity = std::exp(result.mean_loss);
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return result;
}

void run_layers(const language_model& model, forward_engine& engine, engine_matrix& hidden,
                std::int64_t window_length, std::int64_t first, std::int64_t last,
                const std::function<void(std::int64_t layer)>& done) {
  for (std::int64_t layer = first; layer < last; ++layer) {
    if (layer + 1 < last) engine.announce(model.layer(layer + 1));
    engine.layer(model.layer(layer), hidden, window_length);
    if (done) done(layer);
  }
}

engine_matrix final_hidden(const language_model& model, forward_engine& engine,
                           const token_windows& windows) {
  engine_matrix hidden = engine.embed(model.outer(), windows.inputs, windows.length);
  run_layers(model, engine, hidden, windows.length, 0, model.config().layers);
  return hidden;
}

std::int64_t logits_block(std::int64_t vocab, std::int64_t tokens) {
  return std::min(std::max(logits_elements / vocab, min_logits_rows), tokens);
}

void for_each_logits(
    const language_model& model, forward_engine& engine, const engine_matrix& hidden,
    const std::function<void(const engine_matrix& logits, std::int64_t first)>& body) {
  const std::int64_t tokens = hidden.rows();
  const std::int64_t block = logits_block(model.config().vocab, tokens);
  engine_matrix logits;
  for (std::int64_t first = 0; first < tokens; first += block) {
    engine.logits(model.outer(), hidden, first, std::min(block, tokens - first), logits);
    body(logits, first);
  }
}

} // namespace ressvd_llm
