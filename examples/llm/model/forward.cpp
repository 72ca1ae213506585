// SPDX-License-Identifier: Apache-2.0
#include "model/forward.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include <Eigen/Core>

#include "model/parallel.hpp"

namespace ressvd_llm {

namespace {

using array_map = Eigen::Map<Eigen::ArrayXf>;
using const_array_map = Eigen::Map<const Eigen::ArrayXf>;

// OPT reserves the first two rows of its position table.
constexpr std::int64_t opt_position_offset = 2;

// Elements of an element-wise operation worth handing to a thread.
constexpr std::int64_t elementwise_grain = 16'384;

std::int64_t row_grain(std::int64_t width) {
  return std::max<std::int64_t>(1, elementwise_grain / width);
}

void grow(std::vector<float>& buffer, std::int64_t size) {
  if (static_cast<std::int64_t>(buffer.size()) < size)
    buffer.resize(static_cast<std::size_t>(size));
}

// y = scale ∘ x / rms(x), over each of `count` consecutive vectors.
void rms_norm(const std::vector<float>& scale, double eps, const float* x, std::int64_t count,
              float* y) {
  const auto width = static_cast<std::int64_t>(scale.size());
  const const_array_map weight(scale.data(), width);
  for (std::int64_t i = 0; i < count; ++i) {
    const const_array_map in(x + i * width, width);
    const float mean_square = in.square().mean();
    array_map(y + i * width, width) =
        in * (1.0f / std::sqrt(mean_square + static_cast<float>(eps))) * weight;
  }
}

void layer_norm(const norm_weights& norm, double eps, const float* x, std::int64_t count,
                float* y) {
  const auto width = static_cast<std::int64_t>(norm.scale.size());
  const const_array_map scale(norm.scale.data(), width);
  const const_array_map shift(norm.shift.data(), width);
  for (std::int64_t i = 0; i < count; ++i) {
    const const_array_map in(x + i * width, width);
    array_map out(y + i * width, width);
    out = in - in.mean();
    const float variance = out.square().mean();
    out = out * (1.0f / std::sqrt(variance + static_cast<float>(eps))) * scale + shift;
  }
}

// x = f(x), times factor where there is one.
void activate(activation_kind kind, const float* factor, float* x, std::int64_t count) {
  array_map values(x, count);
  switch (kind) {
    case activation_kind::silu:
      values = values / (1.0f + (-values).exp());
      break;
    case activation_kind::relu:
      // Written so that a NaN stays one.
      values = (values < 0.0f).select(0.0f, values);
      break;
    case activation_kind::gelu:
      for (std::int64_t i = 0; i < count; ++i)
        x[i] = 0.5f * x[i] * std::erfc(-x[i] * 0.70710678f);
      break;
    case activation_kind::gelu_tanh:
      values = 0.5f * values * (1.0f + (0.79788456f * (values + 0.044715f * values.cube())).tanh());
      break;
  }
  if (factor != nullptr) values *= const_array_map(factor, count);
}

std::int64_t windows_of(std::int64_t tokens, std::int64_t window_length) {
  if (window_length < 1 || tokens % window_length != 0)
    throw std::invalid_argument("forward: " + std::to_string(tokens) +
                                " tokens are not whole windows of " +
                                std::to_string(window_length));
  return tokens / window_length;
}

} // namespace

layer_cache make_layer_cache(const model_config& config, std::int64_t sequences,
                             std::int64_t capacity) {
  layer_cache cache{.sequences = sequences, .capacity = capacity, .keys = {}, .values = {}};
  const auto size =
      static_cast<std::size_t>(sequences * capacity * config.kv_heads * config.head_dim);
  cache.keys.resize(size);
  cache.values.resize(size);
  return cache;
}

cpu_forward::cpu_forward(const model_config& config, const forward_options& options)
    : config_(config), options_(options), rope_(config) {}

void cpu_forward::embed(const outer_weights& weights, std::span<const std::int32_t> ids,
                        std::int64_t window_length, float* hidden) {
  embed_next(weights, ids, window_length, 0, hidden);
}

void cpu_forward::embed_next(const outer_weights& weights, std::span<const std::int32_t> ids,
                             std::int64_t count, std::int64_t first, float* hidden) {
  const auto tokens = static_cast<std::int64_t>(ids.size());
  windows_of(tokens, count);
  if (!weights.positions.empty() && first + count > config_.max_positions)
    throw std::invalid_argument("forward: window of " + std::to_string(first + count) +
                                " tokens, but the model has learned " +
                                std::to_string(config_.max_positions) + " positions");
  const std::int64_t width = config_.hidden_size;
  std::vector<float> position(static_cast<std::size_t>(weights.positions.empty() ? 0 : width));
  for (std::int64_t t = 0; t < tokens; ++t) {
    const std::int32_t id = ids[static_cast<std::size_t>(t)];
    if (id < 0 || id >= config_.vocab)
      throw std::invalid_argument("forward: token id " + std::to_string(id) +
                                  " outside the vocabulary of " + std::to_string(config_.vocab));
    float* row = hidden + t * width;
    const float* source = weights.embedding.read_rows(id, 1, row);
    if (source != row) std::copy(source, source + width, row);
    if (!weights.positions.empty())
      array_map(row, width) += const_array_map(
          weights.positions.read_rows(first + t % count + opt_position_offset, 1, position.data()),
          width);
  }
}

void cpu_forward::layer(const layer_weights& weights, float* hidden, std::int64_t tokens,
                        std::int64_t window_length, const input_observer* observer) {
  const std::int64_t windows = windows_of(tokens, window_length);
  const std::int64_t chunk = std::max<std::int64_t>(1, options_.chunk_tokens / window_length);
  for (std::int64_t start = 0; start < windows; start += chunk)
    run(weights, hidden + start * window_length * config_.hidden_size,
        std::min(chunk, windows - start), window_length, 0, nullptr, observer);
}

void cpu_forward::layer_next(const layer_weights& weights, float* hidden, std::int64_t count,
                             std::int64_t first, layer_cache& cache) {
  if (first + count > cache.capacity)
    throw std::invalid_argument("forward: position " + std::to_string(first + count) +
                                " beyond the cache of " + std::to_string(cache.capacity));
  run(weights, hidden, cache.sequences, count, first, &cache, nullptr);
}

void cpu_forward::run(const layer_weights& weights, float* hidden, std::int64_t sequences,
                      std::int64_t count, std::int64_t first, layer_cache* cache,
                      const input_observer* observer) {
  const std::int64_t tokens = sequences * count;
  const std::int64_t width = config_.hidden_size;
  const std::int64_t inner = config_.intermediate_size;
  const std::int64_t head_dim = config_.head_dim;
  const std::int64_t q_width = config_.heads * head_dim;
  const std::int64_t kv_width = config_.kv_heads * head_dim;
  const bool rotary = config_.family != model_family::opt;
  const auto observe = [&](input_group group, const float* x, std::int64_t features) {
    if (observer != nullptr) (*observer)(group, x, tokens, features);
  };
  grow(normed_, tokens * width);
  grow(q_, tokens * q_width);
  grow(k_, tokens * kv_width);
  grow(v_, tokens * kv_width);
  grow(mixed_, tokens * q_width);
  grow(up_, tokens * inner);
  if (rotary) rope_.reserve(first + count);

  normalise(weights.attention_norm, hidden, tokens, normed_.data());
  observe(input_group::attention, normed_.data(), width);
  weights[projection::q].apply(normed_.data(), tokens, q_.data());
  weights[projection::k].apply(normed_.data(), tokens, k_.data());
  weights[projection::v].apply(normed_.data(), tokens, v_.data());

  parallel_for(tokens, row_grain(q_width), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      float* q = q_.data() + t * q_width;
      float* k = k_.data() + t * kv_width;
      if (config_.qk_norm) {
        rms_norm(weights.q_norm, config_.norm_eps, q, config_.heads, q);
        rms_norm(weights.k_norm, config_.norm_eps, k, config_.kv_heads, k);
      }
      const std::int64_t position = first + t % count;
      if (rotary) {
        rope_.rotate(q, config_.heads, position);
        rope_.rotate(k, config_.kv_heads, position);
      }
      if (cache != nullptr) {
        const std::int64_t row = (t / count * cache->capacity + position) * kv_width;
        std::copy(k, k + kv_width, cache->keys.data() + row);
        const float* v = v_.data() + t * kv_width;
        std::copy(v, v + kv_width, cache->values.data() + row);
      }
    }
  });

  const float* keys = cache != nullptr ? cache->keys.data() : k_.data();
  const float* values = cache != nullptr ? cache->values.data() : v_.data();
  const std::int64_t positions = cache != nullptr ? cache->capacity : count;
  const std::int64_t heads_per_kv = config_.heads / config_.kv_heads;
  const std::int64_t head_work = 4 * count * (first + count) * head_dim;
  parallel_for(sequences * config_.heads, std::max<std::int64_t>(1, 100'000 / head_work),
               [&](std::int64_t begin, std::int64_t end) {
                 std::vector<float> scratch;
                 for (std::int64_t index = begin; index < end; ++index) {
                   const std::int64_t sequence = index / config_.heads;
                   const std::int64_t h = index % config_.heads;
                   const std::int64_t kv =
                       sequence * positions * kv_width + h / heads_per_kv * head_dim;
                   const std::int64_t at = sequence * count * q_width + h * head_dim;
                   attend({.head_dim = head_dim,
                           .queries = count,
                           .first = first,
                           .sliding_window = config_.sliding_window.value_or(0),
                           .q = q_.data() + at,
                           .q_stride = q_width,
                           .k = keys + kv,
                           .v = values + kv,
                           .kv_stride = kv_width,
                           .out = mixed_.data() + at,
                           .out_stride = q_width},
                          scratch);
                 }
               });
  observe(input_group::attention_output, mixed_.data(), q_width);
  weights[projection::o].apply_add(mixed_.data(), tokens, hidden);

  normalise(weights.mlp_norm, hidden, tokens, normed_.data());
  observe(input_group::mlp, normed_.data(), width);
  weights[projection::up].apply(normed_.data(), tokens, up_.data());
  const bool gated = !weights[projection::gate].empty();
  if (gated) {
    grow(gate_, tokens * inner);
    weights[projection::gate].apply(normed_.data(), tokens, gate_.data());
  }
  // The gate, where there is one, goes through the activation and multiplies the other branch.
  std::vector<float>& activated = gated ? gate_ : up_;
  parallel_for(tokens * inner, elementwise_grain, [&](std::int64_t begin, std::int64_t end) {
    activate(config_.activation, gated ? up_.data() + begin : nullptr, activated.data() + begin,
             end - begin);
  });
  observe(input_group::mlp_output, activated.data(), inner);
  weights[projection::down].apply_add(activated.data(), tokens, hidden);
}

void cpu_forward::normalise(const norm_weights& norm, const float* x, std::int64_t tokens,
                            float* y) const {
  const std::int64_t width = config_.hidden_size;
  parallel_for(tokens, row_grain(width), [&](std::int64_t begin, std::int64_t end) {
    if (norm.shift.empty())
      rms_norm(norm.scale, config_.norm_eps, x + begin * width, end - begin, y + begin * width);
    else
      layer_norm(norm, config_.norm_eps, x + begin * width, end - begin, y + begin * width);
  });
}

void cpu_forward::logits(const outer_weights& weights, const float* hidden, std::int64_t tokens,
                         float* logits) {
  const std::int64_t width = config_.hidden_size;
  grow(normed_, tokens * width);
  normalise(weights.final_norm, hidden, tokens, normed_.data());
  std::fill(logits, logits + tokens * config_.vocab, 0.0f);
  multiply_add(normed_.data(), tokens, weights.head, logits);
}

} // namespace ressvd_llm
