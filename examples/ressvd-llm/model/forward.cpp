// SPDX-License-Identifier: Apache-2.0
#include "model/forward.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include <Eigen/Core>

#include "model/elementwise.hpp"
#include "model/parallel.hpp"
#include "model/window_groups.hpp"

namespace ressvd_llm {

namespace {

using array_map = Eigen::Map<Eigen::ArrayXf>;
using const_array_map = Eigen::Map<const Eigen::ArrayXf>;

// Floats of the buffers a token.
std::int64_t row_floats(const model_config& config) {
  return (config.post_norms ? 4 : 2) * config.hidden_size +
         2 * (config.heads + config.kv_heads) * config.head_dim + mlp_row_floats(config);
}

rope_table local_rope(model_config config) {
  config.rope = *config.local_rope;
  return rope_table(config);
}

} // namespace

std::int64_t mlp_row_floats(const model_config& config) {
  const std::int64_t plain = 2 * config.intermediate_size;
  if (config.experts == 0) return plain;
  const std::int64_t row = 2 * (config.expert_intermediate_size + config.hidden_size);
  return std::max(plain, config.experts_per_token * row) + config.experts;
}

std::uint64_t forward_buffers(const model_config& config, std::int64_t window_length,
                              std::int64_t threads, const forward_options& options) {
  return group_buffers(row_floats(config), window_length, threads, options);
}

void check_ids(const model_config& config, const outer_weights& weights,
               std::span<const std::int32_t> ids, std::int64_t count, std::int64_t first) {
  windows_of(std::ssize(ids), count);
  if (!weights.positions.empty() && first + count > config.max_positions)
    throw std::invalid_argument("forward: window of " + std::to_string(first + count) +
                                " tokens, but the model has learned " +
                                std::to_string(config.max_positions) + " positions");
  for (const std::int32_t id : ids)
    if (id < 0 || id >= config.vocab)
      throw std::invalid_argument("forward: token id " + std::to_string(id) +
                                  " outside the vocabulary of " + std::to_string(config.vocab));
}

std::int64_t window_of(const model_config& config, const layer_weights& weights) {
  return weights.full_attention ? 0 : config.sliding_window.value_or(0);
}

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
    : config_(config), options_(options), rope_(config), workspaces_(1) {
  if (config.local_rope) local_rope_ = local_rope(config);
}

void cpu_forward::reserve_positions(std::int64_t count) {
  if (config_.family == model_family::opt) return;
  rope_.reserve(count);
  if (local_rope_) local_rope_->reserve(count);
}

const rope_table& cpu_forward::rope_of(const layer_weights& weights) const {
  return local_rope_ && window_of(weights) > 0 ? *local_rope_ : rope_;
}

std::int64_t cpu_forward::window_of(const layer_weights& weights) const {
  return ressvd_llm::window_of(config_, weights);
}

engine_matrix cpu_forward::embed(const outer_weights& weights, std::span<const std::int32_t> ids,
                                 std::int64_t window_length) {
  std::vector<float> hidden(ids.size() * static_cast<std::size_t>(config_.hidden_size));
  embed(weights, ids, window_length, hidden.data());
  return upload(std::move(hidden));
}

void cpu_forward::layer(const layer_weights& weights, engine_matrix& hidden,
                        std::int64_t window_length, const input_observer* observer) {
  layer(weights, hidden.data(), hidden.rows(), window_length, observer);
}

void cpu_forward::logits(const outer_weights& weights, const engine_matrix& hidden,
                         std::int64_t first, std::int64_t count, engine_matrix& logits) {
  if (logits.rows() != count || logits.cols() != config_.vocab) {
    logits.clear(); // never both in memory
    logits = host_matrix(std::vector<float>(static_cast<std::size_t>(count * config_.vocab)),
                         config_.vocab);
  }
  this->logits(weights, hidden.data() + first * config_.hidden_size, count, logits.data());
}

engine_matrix cpu_forward::upload(std::vector<float> hidden) {
  return host_matrix(std::move(hidden), config_.hidden_size);
}

std::vector<float> cpu_forward::download(const activation_view& x) {
  return {x.host(), x.host() + x.rows * x.cols};
}

void cpu_forward::embed(const outer_weights& weights, std::span<const std::int32_t> ids,
                        std::int64_t window_length, float* hidden) {
  embed_next(weights, ids, window_length, 0, hidden);
}

void cpu_forward::embed_next(const outer_weights& weights, std::span<const std::int32_t> ids,
                             std::int64_t count, std::int64_t first, float* hidden) {
  const auto tokens = static_cast<std::int64_t>(ids.size());
  check_ids(config_, weights, ids, count, first);
  const std::int64_t width = config_.hidden_size;
  std::vector<float> position(static_cast<std::size_t>(weights.positions.empty() ? 0 : width));
  for (std::int64_t t = 0; t < tokens; ++t) {
    const std::int32_t id = ids[static_cast<std::size_t>(t)];
    float* row = hidden + t * width;
    const float* source = weights.embedding.read_rows(id, 1, row);
    if (source != row) std::copy(source, source + width, row);
    if (config_.embedding_scale != 1.0)
      array_map(row, width) *= static_cast<float>(config_.embedding_scale);
    if (!weights.positions.empty())
      array_map(row, width) += const_array_map(
          weights.positions.read_rows(first + t % count + opt_position_offset, 1, position.data()),
          width);
  }
}

void cpu_forward::layer(const layer_weights& weights, float* hidden, std::int64_t tokens,
                        std::int64_t window_length, const input_observer* observer) {
  const std::int64_t windows = windows_of(tokens, window_length);
  reserve_positions(window_length);
  const group_size group =
      choose_group(row_floats(config_), windows, window_length, thread_count(), options_);
  const std::int64_t groups = (windows + group.windows - 1) / group.windows;
  const auto run_group = [&](std::int64_t index, layer_buffers& work) {
    const std::int64_t start = index * group.windows;
    run(weights, hidden + start * window_length * config_.hidden_size,
        std::min(group.windows, windows - start), window_length, 0, nullptr, work);
  };
  const auto slots = static_cast<std::size_t>(group.at_a_time);
  if (workspaces_.size() < slots) workspaces_.resize(slots);

  if (observer == nullptr && group.at_a_time > 1) {
    parallel_each(groups, [&](std::int64_t index) {
      run_group(index, workspaces_[static_cast<std::size_t>(thread_index())]);
    });
    return;
  }
  for (std::int64_t first = 0; first < groups; first += group.at_a_time) {
    const std::int64_t count = std::min(group.at_a_time, groups - first);
    if (count == 1)
      run_group(first, workspaces_[0]);
    else
      parallel_each(count, [&](std::int64_t i) {
        run_group(first + i, workspaces_[static_cast<std::size_t>(i)]);
      });
    if (observer == nullptr) continue;
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t start = (first + i) * group.windows;
      observe(weights, workspaces_[static_cast<std::size_t>(i)], start * window_length,
              std::min(group.windows, windows - start) * window_length, *observer);
    }
  }
}

void cpu_forward::layer_next(const layer_weights& weights, float* hidden, std::int64_t count,
                             std::int64_t first, layer_cache& cache) {
  if (first + count > cache.capacity)
    throw std::invalid_argument("forward: position " + std::to_string(first + count) +
                                " beyond the cache of " + std::to_string(cache.capacity));
  reserve_positions(first + count);
  run(weights, hidden, cache.sequences, count, first, &cache, workspaces_[0]);
}

void cpu_forward::run(const layer_weights& weights, float* hidden, std::int64_t sequences,
                      std::int64_t count, std::int64_t first, layer_cache* cache,
                      layer_buffers& work) const {
  const std::int64_t tokens = sequences * count;
  const std::int64_t width = config_.hidden_size;
  const std::int64_t inner = config_.intermediate_size;
  const std::int64_t head_dim = config_.head_dim;
  const std::int64_t q_width = config_.heads * head_dim;
  const std::int64_t kv_width = config_.kv_heads * head_dim;
  work.attention_input.reserve(tokens * width);
  work.q.reserve(tokens * q_width);
  work.k.reserve(tokens * kv_width);
  work.v.reserve(tokens * kv_width);
  work.heads.reserve(tokens * q_width);
  work.mlp_input.reserve(tokens * width);
  if (work.kept && work.low_rank.size() < weights.linears.size())
    work.low_rank.resize(weights.linears.size());

  const auto low_rank = [&work](projection kind) {
    return work.kept ? &work.low_rank[static_cast<std::size_t>(kind)] : nullptr;
  };
  const auto apply = [&](projection kind, const float_buffer& x, float_buffer& y) {
    weights[kind].apply(x.data(), tokens, y.data(), low_rank(kind));
  };
  const auto keep = [&](const float* values, std::int64_t columns, float_buffer& copy) {
    if (!work.kept) return;
    copy.reserve(tokens * columns);
    std::copy_n(values, tokens * columns, copy.data());
  };
  const auto add_output = [&](projection kind, const float_buffer& x, const norm_weights& norm,
                              float_buffer& output) {
    if (norm.scale.empty())
      return weights[kind].apply_add(x.data(), tokens, hidden, low_rank(kind));
    output.reserve(tokens * width);
    apply(kind, x, output);
    add_normalised(norm, output.data(), tokens, hidden);
  };
  normalise(weights.attention_norm, hidden, tokens, work.attention_input.data());
  apply(projection::q, work.attention_input, work.q);
  apply(projection::k, work.attention_input, work.k);
  apply(projection::v, work.attention_input, work.v);
  if (config_.qk_norm) {
    keep(work.q.data(), q_width, work.q_before);
    keep(work.k.data(), kv_width, work.k_before);
  }
  const rope_table& rope = rope_of(weights);
  parallel_for(tokens, vector_grain(q_width), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      float* q = work.q.data() + t * q_width;
      float* k = work.k.data() + t * kv_width;
      const std::int64_t position = first + t % count;
      if (config_.qk_norm) {
        rms_norm(weights.q_norm, config_.norm_eps, q, config_.heads, q);
        rms_norm(weights.k_norm, config_.norm_eps, k, config_.kv_heads, k);
      }
      if (config_.family != model_family::opt) {
        rope.rotate(q, config_.heads, position);
        rope.rotate(k, config_.kv_heads, position);
      }
      if (cache != nullptr) {
        const float* v = work.v.data() + t * kv_width;
        for (std::int64_t h = 0; h < config_.kv_heads; ++h) {
          const std::int64_t row =
              ((t / count * config_.kv_heads + h) * cache->capacity + position) * head_dim;
          std::copy_n(k + h * head_dim, head_dim, cache->keys.data() + row);
          std::copy_n(v + h * head_dim, head_dim, cache->values.data() + row);
        }
      }
    }
  });
  attend_all(sequences, count, first, window_of(weights), cache, work);
  add_output(projection::o, work.heads, weights.attention_post_norm, work.attention_output);
  keep(hidden, width, work.middle);

  normalise(weights.mlp_norm, hidden, tokens, work.mlp_input.data());
  if (weights.experts() > 0) return run_experts(weights, hidden, tokens, work);
  work.up.reserve(tokens * inner);
  apply(projection::up, work.mlp_input, work.up);
  const bool gated = !weights[projection::gate].empty();
  if (gated) {
    work.gate.reserve(tokens * inner);
    apply(projection::gate, work.mlp_input, work.gate);
  }
  // The gate, where there is one, goes through the activation and multiplies the other branch.
  float_buffer& activated = gated ? work.gate : work.up;
  keep(activated.data(), inner, work.inner_before);
  for_each_aligned(tokens * inner, [&](std::int64_t at, std::int64_t elements) {
    activate(config_.activation, gated ? work.up.data() + at : nullptr, activated.data() + at,
             elements);
  });
  if (work.output) add_output(projection::down, activated, weights.mlp_post_norm, work.mlp_output);
}

void cpu_forward::run_experts(const layer_weights& weights, float* hidden, std::int64_t tokens,
                              layer_buffers& work) const {
  const std::int64_t width = config_.hidden_size;
  const std::int64_t inner = config_.expert_intermediate_size;
  const routing& routes = work.routes;
  route(config_, weights.router, work.mlp_input.data(), tokens, work.routes);
  const std::int64_t rows = routes.row_count();
  work.expert_input.reserve(rows * width);
  work.up.reserve(rows * inner);
  work.gate.reserve(rows * inner);
  gather_rows(routes, work.mlp_input.data(), width, work.expert_input.data());
  const auto apply = [&](projection kind, const float_buffer& x, float_buffer& y) {
    for (std::int64_t e = 0; e < routes.experts(); ++e) {
      const matrix_place place(kind, e);
      const linear& l = weights[place];
      if (routes.count(e) == 0) continue;
      l.apply(x.data() + routes.first(e) * l.in(), routes.count(e),
              y.data() + routes.first(e) * l.out(),
              work.kept ? &work.low_rank[place.index()] : nullptr);
    }
  };
  apply(projection::up, work.expert_input, work.up);
  apply(projection::gate, work.expert_input, work.gate);
  if (work.kept) {
    work.inner_before.reserve(rows * inner);
    std::copy_n(work.gate.data(), rows * inner, work.inner_before.data());
  }
  for_each_aligned(rows * inner, [&](std::int64_t at, std::int64_t elements) {
    activate(config_.activation, work.up.data() + at, work.gate.data() + at, elements);
  });
  if (!work.output) return;
  work.expert_output.reserve(rows * width);
  apply(projection::down, work.gate, work.expert_output);
  add_rows(routes, work.expert_output.data(), width, true, hidden);
}

void cpu_forward::attend_all(std::int64_t sequences, std::int64_t count, std::int64_t first,
                             std::int64_t window, const layer_cache* cache,
                             layer_buffers& work) const {
  const std::int64_t head_dim = config_.head_dim;
  const std::int64_t q_width = config_.heads * head_dim;
  const std::int64_t kv_width = config_.kv_heads * head_dim;
  const float* keys = cache != nullptr ? cache->keys.data() : work.k.data();
  const float* values = cache != nullptr ? cache->values.data() : work.v.data();
  const std::int64_t heads_per_kv = config_.heads / config_.kv_heads;
  const std::int64_t head_flops = 4 * count * (first + count) * head_dim;
  const std::int64_t grain = std::max<std::int64_t>(1, 100'000 / head_flops);
  parallel_for(sequences * config_.heads, grain, [&](std::int64_t begin, std::int64_t end) {
    float_buffer scratch;
    for (std::int64_t index = begin; index < end; ++index) {
      const std::int64_t sequence = index / config_.heads;
      const std::int64_t h = index % config_.heads;
      const std::int64_t kv_head = h / heads_per_kv;
      const std::int64_t kv =
          cache != nullptr ? (sequence * config_.kv_heads + kv_head) * cache->capacity * head_dim
                           : sequence * count * kv_width + kv_head * head_dim;
      const std::int64_t at = sequence * count * q_width + h * head_dim;
      attend({.head_dim = head_dim,
              .queries = count,
              .first = first,
              .sliding_window = window,
              .scale = config_.attention_scale,
              .cap = config_.attention_cap,
              .q = work.q.data() + at,
              .q_stride = q_width,
              .k = keys + kv,
              .v = values + kv,
              .kv_stride = cache != nullptr ? head_dim : kv_width,
              .out = work.heads.data() + at,
              .out_stride = q_width},
             scratch);
    }
  });
}

void cpu_forward::observe(const layer_weights& weights, const layer_buffers& work,
                          std::int64_t first, std::int64_t tokens,
                          const input_observer& observer) const {
  const std::int64_t q_width = config_.heads * config_.head_dim;
  const std::int64_t width = config_.hidden_size;
  const auto show = [&](const layer_input& input, const float* x, std::int64_t rows,
                        std::int64_t features, std::span<const std::int64_t> positions = {}) {
    observer({input, {.data = x, .rows = rows, .cols = features}, positions});
  };
  show(input_group::attention, work.attention_input.data(), tokens, width);
  show(input_group::attention_output, work.heads.data(), tokens, q_width);
  if (weights.experts() == 0) {
    const bool gated = !weights[projection::gate].empty();
    show(input_group::mlp, work.mlp_input.data(), tokens, width);
    show(input_group::mlp_output, (gated ? work.gate : work.up).data(), tokens,
         config_.intermediate_size);
    return;
  }
  const routing& routes = work.routes;
  const std::int64_t inner = config_.expert_intermediate_size;
  for (std::int64_t e = 0; e < routes.experts(); ++e) {
    if (routes.count(e) == 0) continue;
    std::vector<std::int64_t> positions(routes.token.begin() + routes.first(e),
                                        routes.token.begin() + routes.first(e + 1));
    for (std::int64_t& position : positions)
      position += first;
    show({input_group::mlp, e}, work.expert_input.data() + routes.first(e) * width, routes.count(e),
         width, positions);
    show({input_group::mlp_output, e}, work.gate.data() + routes.first(e) * inner, routes.count(e),
         inner, positions);
  }
}

void cpu_forward::normalise(const norm_weights& norm, const float* x, std::int64_t tokens,
                            float* y) const {
  const std::int64_t width = config_.hidden_size;
  parallel_for(tokens, vector_grain(width), [&](std::int64_t begin, std::int64_t end) {
    apply_norm(norm, config_.norm_eps, x + begin * width, end - begin, y + begin * width);
  });
}

// hidden += norm(x).
void cpu_forward::add_normalised(const norm_weights& norm, const float* x, std::int64_t tokens,
                                 float* hidden) const {
  const std::int64_t width = config_.hidden_size;
  parallel_for(tokens, vector_grain(width), [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> row(static_cast<std::size_t>(width));
    for (std::int64_t t = begin; t < end; ++t) {
      apply_norm(norm, config_.norm_eps, x + t * width, 1, row.data());
      array_map(hidden + t * width, width) += const_array_map(row.data(), width);
    }
  });
}

void cpu_forward::logits(const outer_weights& weights, const float* hidden, std::int64_t tokens,
                         float* logits) {
  const std::int64_t width = config_.hidden_size;
  float_buffer& normed = workspaces_[0].attention_input;
  normed.reserve(tokens * width);
  normalise(weights.final_norm, hidden, tokens, normed.data());
  std::fill(logits, logits + tokens * config_.vocab, 0.0f);
  multiply_add(normed.data(), tokens, weights.head, logits);
  if (config_.logit_cap == 0) return;
  const auto cap = static_cast<float>(config_.logit_cap);
  for_each_aligned(tokens * config_.vocab, [&](std::int64_t at, std::int64_t count) {
    array_map values(logits + at, count);
    values = (values * (1.0f / cap)).tanh() * cap;
  });
}

} // namespace ressvd_llm
