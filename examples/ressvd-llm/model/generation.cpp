// SPDX-License-Identifier: Apache-2.0
#include "model/generation.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <string>

#include <Eigen/Core>

#include "model/parallel.hpp"

namespace ressvd_llm {

namespace {

// Seeds that differ in one bit must give unrelated streams (splitmix64's finaliser).
std::uint64_t mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

std::int32_t likeliest(std::span<const float> logits) {
  return static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

void require_finite(std::span<const float> logits) {
  for (std::size_t i = 0; i < logits.size(); ++i)
    if (!std::isfinite(logits[i]))
      throw std::runtime_error("logit " + std::to_string(i) +
                               " is not finite: the model does not compute");
}

// Samples of one batch: enough for matrix products to run well; more would only push keys and
// values out of the caches.
constexpr std::int64_t min_batch = 16;
constexpr std::int64_t max_batch = 64;

// Samples [first, first + count), text: count × length. Calls advance() after every token of all.
void draw_samples(const language_model& model, const sampling_options& sampling, std::int64_t first,
                  std::int64_t count, std::int64_t length, std::int32_t* text,
                  const std::function<void()>& advance) {
  const model_config& config = model.config();
  std::vector<draw_stream> draws;
  std::vector<std::int32_t> tokens;
  for (std::int64_t s = 0; s < count; ++s) {
    draws.emplace_back(sampling.seed, static_cast<std::uint64_t>(first + s));
    tokens.push_back(config.bos.value_or(
        static_cast<std::int32_t>(draws.back().next() * static_cast<double>(config.vocab))));
  }
  decoder state(model, count, length);
  for (std::int64_t at = 0; at < length; ++at) {
    const std::span<const float> logits = state.append(tokens);
    parallel_for(count, std::max<std::int64_t>(1, 16'384 / config.vocab),
                 [&](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t s = begin; s < end; ++s) {
                     const auto index = static_cast<std::size_t>(s);
                     tokens[index] =
                         sample_token(logits.subspan(static_cast<std::size_t>(s * config.vocab),
                                                     static_cast<std::size_t>(config.vocab)),
                                      sampling, draws[index]);
                     text[s * length + at] = tokens[index];
                   }
                 });
    advance();
  }
}

} // namespace

decoder::decoder(const language_model& model, std::int64_t sequences, std::int64_t capacity)
    : model_(&model), forward_(model.config()), sequences_(sequences), capacity_(capacity) {
  const model_config& config = model.config();
  if (sequences < 1 || capacity < 1)
    throw std::invalid_argument("decoder: " + std::to_string(sequences) + " sequences of " +
                                std::to_string(capacity) + " tokens");
  if (!model.outer().positions.empty() && capacity > config.max_positions)
    throw std::invalid_argument("decoder: " + std::to_string(capacity) +
                                " tokens, but the model has learned " +
                                std::to_string(config.max_positions) + " positions");
  for (std::int64_t i = 0; i < config.layers; ++i)
    caches_.push_back(make_layer_cache(config, sequences, capacity));
  logits_.resize(static_cast<std::size_t>(sequences * config.vocab));
}

std::span<const float> decoder::append(std::span<const std::int32_t> ids) {
  const auto tokens = static_cast<std::int64_t>(ids.size());
  if (tokens < 1 || tokens % sequences_ != 0)
    throw std::invalid_argument("decoder: " + std::to_string(tokens) + " tokens for " +
                                std::to_string(sequences_) + " sequences");
  const std::int64_t count = tokens / sequences_;
  if (length_ + count > capacity_)
    throw std::invalid_argument("decoder: " + std::to_string(length_ + count) +
                                " tokens exceed the capacity of " + std::to_string(capacity_));
  const std::int64_t width = model_->config().hidden_size;
  hidden_.resize(static_cast<std::size_t>(tokens * width));
  forward_.embed_next(model_->outer(), ids, count, length_, hidden_.data());
  for (std::int64_t layer = 0; layer < model_->config().layers; ++layer)
    forward_.layer_next(model_->layer(layer), hidden_.data(), count, length_,
                        caches_[static_cast<std::size_t>(layer)]);
  length_ += count;
  // Only the last token of each sequence is asked for.
  for (std::int64_t s = 0; s < sequences_; ++s) {
    const float* last = hidden_.data() + ((s + 1) * count - 1) * width;
    std::copy(last, last + width, hidden_.data() + s * width);
  }
  forward_.logits(model_->outer(), hidden_.data(), sequences_, logits_.data());
  return logits_;
}

draw_stream::draw_stream(std::uint64_t seed, std::uint64_t index)
    : engine_(mix(mix(seed) ^ mix(~index))) {}

double draw_stream::next() {
  return static_cast<double>(engine_() >> 11) * 0x1.0p-53;
}

std::int32_t sample_token(std::span<const float> logits, const sampling_options& options,
                          draw_stream& draws) {
  if (!(options.temperature >= 0.0) || !std::isfinite(options.temperature))
    throw std::invalid_argument("sample_token: temperature " + std::to_string(options.temperature) +
                                " is not in [0, ∞)");
  if (options.top_k < 0)
    throw std::invalid_argument("sample_token: top_k " + std::to_string(options.top_k) +
                                " is negative");
  require_finite(logits);
  if (options.temperature == 0.0 || options.top_k == 1) return likeliest(logits);

  Eigen::ArrayXd weights =
      Eigen::Map<const Eigen::ArrayXf>(logits.data(), static_cast<Eigen::Index>(logits.size()))
          .cast<double>();
  weights = ((weights - weights.maxCoeff()) / options.temperature).exp();
  const auto top = static_cast<std::size_t>(options.top_k);
  if (top != 0 && top < logits.size()) {
    std::vector<std::int32_t> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    std::nth_element(order.begin(), order.begin() + options.top_k, order.end(),
                     [&](std::int32_t a, std::int32_t b) {
                       const float la = logits[static_cast<std::size_t>(a)];
                       const float lb = logits[static_cast<std::size_t>(b)];
                       return la != lb ? la > lb : a < b;
                     });
    for (std::size_t i = top; i < order.size(); ++i)
      weights[order[i]] = 0.0;
  }
  double rest = draws.next() * weights.sum();
  std::int32_t last = 0;
  for (Eigen::Index i = 0; i < weights.size(); ++i) {
    if (weights[i] == 0.0) continue;
    last = static_cast<std::int32_t>(i);
    rest -= weights[i];
    if (rest < 0.0) return last;
  }
  // Rounding of the sum left a rest: the last token that can be drawn.
  return last;
}

std::vector<std::int32_t> generate(const language_model& model,
                                   std::span<const std::int32_t> prompt,
                                   const generation_options& options) {
  if (prompt.empty()) throw std::invalid_argument("generate: the prompt is empty");
  std::vector<std::int32_t> result;
  if (options.tokens < 1) return result;
  // The last token is drawn but not appended.
  decoder state(model, 1, static_cast<std::int64_t>(prompt.size()) + options.tokens - 1);
  draw_stream draws(options.sampling.seed, 0);
  std::span<const float> logits = state.append(prompt);
  while (true) {
    const std::int32_t token = sample_token(logits, options.sampling, draws);
    if (std::find(options.stop.begin(), options.stop.end(), token) != options.stop.end()) break;
    result.push_back(token);
    if (options.progress)
      options.progress(static_cast<double>(result.size()) / static_cast<double>(options.tokens));
    if (static_cast<std::int64_t>(result.size()) == options.tokens) break;
    logits = state.append({&result.back(), 1});
  }
  return result;
}

std::vector<std::int32_t> sample_texts(const language_model& model, const sample_options& options) {
  const model_config& config = model.config();
  if (options.count < 1 || options.length < 1)
    throw std::invalid_argument("sample_texts: " + std::to_string(options.count) + " samples of " +
                                std::to_string(options.length) + " tokens");
  const auto bytes_each = static_cast<std::uint64_t>(2 * config.layers * options.length *
                                                     config.kv_heads * config.head_dim) *
                          sizeof(float);
  const auto affordable = static_cast<std::int64_t>(std::clamp<std::uint64_t>(
      options.memory_limit / bytes_each, 1, static_cast<std::uint64_t>(options.count)));
  // Each thread draws batches of its own where memory allows: nothing to wait for, and keys and
  // values near its processor. Otherwise all threads share the work on one batch.
  const std::int64_t threads = std::min(thread_count(), affordable);
  const bool apart = threads > 1 && affordable / threads >= min_batch;
  const std::int64_t batch = apart ? std::clamp((options.count + threads - 1) / threads, min_batch,
                                                std::min(affordable / threads, max_batch))
                                   : affordable;
  const std::int64_t batches = (options.count + batch - 1) / batch;
  // Loaded now: a model is for one thread at a time until everything is there.
  for (std::int64_t layer = 0; layer < config.layers; ++layer)
    model.layer(layer);
  model.outer();

  std::vector<std::int32_t> result(static_cast<std::size_t>(options.count * options.length));
  std::atomic<std::int64_t> drawn = 0;
  const auto draw_batch = [&](std::int64_t index) {
    const std::int64_t first = index * batch;
    const std::int64_t sequences = std::min(batch, options.count - first);
    draw_samples(model, options.sampling, options.first + first, sequences, options.length,
                 result.data() + first * options.length, [&] {
                   drawn += sequences;
                   // Only the thread that called may show progress.
                   if (options.progress && thread_index() == 0)
                     options.progress(static_cast<double>(drawn) /
                                      static_cast<double>(options.count * options.length));
                 });
  };
  if (apart) {
    parallel_each(batches, draw_batch);
  } else {
    for (std::int64_t index = 0; index < batches; ++index)
      draw_batch(index);
  }
  return result;
}

} // namespace ressvd_llm
