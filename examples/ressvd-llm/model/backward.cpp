// SPDX-License-Identifier: Apache-2.0
#include "model/backward.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <string>

#include <Eigen/Core>

#include "model/evaluation.hpp"
#include "model/generation.hpp"
#include "model/parallel.hpp"
#include "model/window_groups.hpp"

namespace ressvd_llm {

namespace {

constexpr std::int32_t no_label = -1;

// Draws apart from those of texts sampled with the same seed.
constexpr std::uint64_t first_label_stream = std::uint64_t{1} << 63;

// Floats of the buffers a token, without those of factored matrices.
std::int64_t backward_row_floats(const model_config& config) {
  const std::int64_t heads = (config.heads + config.kv_heads) * config.head_dim;
  const std::int64_t forward =
      (config.post_norms ? 4 : 2) * config.hidden_size + 2 * heads + mlp_row_floats(config);
  const std::int64_t kept =
      config.hidden_size + (config.qk_norm ? heads : 0) + mlp_row_floats(config) / 2;
  const std::int64_t gradients =
      4 * config.hidden_size + heads + config.kv_heads * config.head_dim + mlp_row_floats(config);
  return forward + kept + gradients;
}

std::int64_t low_rank_floats(const model_config& config, const layer_weights& weights) {
  std::int64_t sum = 0;
  std::int64_t of_experts = 0;
  for (const matrix_place& place : places_of(weights)) {
    const linear& l = weights[place];
    if (l.factored()) (place.expert == no_expert ? sum : of_experts) += 2 * l.rank();
  }
  if (of_experts > 0) sum += of_experts * config.experts_per_token / config.experts;
  return sum;
}

void add(const float* x, std::int64_t count, float* y) {
  for (std::int64_t i = 0; i < count; ++i)
    y[i] += x[i];
}

void add(const std::vector<double>& x, std::vector<float>& y) {
  for (std::size_t i = 0; i < y.size(); ++i)
    y[i] += static_cast<float>(x[i]);
}

// sum += the column sums of g (tokens × width).
void add_columns(const float* g, std::int64_t tokens, std::vector<float>& sum) {
  const std::size_t width = sum.size();
  std::vector<double> sums(width);
  for (std::int64_t t = 0; t < tokens; ++t, g += width)
    for (std::size_t j = 0; j < width; ++j)
      sums[j] += static_cast<double>(g[j]);
  add(sums, sum);
}

// Replaces logits by the gradient of −log p(label), and returns that.
double softmax_gradient(std::span<float> logits, std::int32_t label, Eigen::ArrayXd& wide) {
  Eigen::Map<Eigen::ArrayXf> row(logits.data(), static_cast<Eigen::Index>(logits.size()));
  wide = row.cast<double>();
  const double peak = wide.maxCoeff();
  wide = (wide - peak).exp();
  const double total = wide.sum();
  const double loss = std::log(total) + peak - static_cast<double>(row[label]);
  wide *= 1.0 / total;
  wide[label] -= 1.0;
  row = wide.cast<float>();
  return loss;
}

} // namespace

std::uint64_t backward_buffers(const model_config& config, std::int64_t window_length,
                               std::int64_t threads, const forward_options& options) {
  return group_buffers(backward_row_floats(config), window_length, threads, options);
}

layer_gradients zero_gradients(const layer_weights& weights, const gradient_choice& choice) {
  layer_gradients result;
  result.linears.resize(weights.linears.size());
  const auto zeros = [](const weight_matrix& m) {
    return std::vector<float>(static_cast<std::size_t>(m.rows() * m.cols()));
  };
  for (std::size_t i = 0; i < weights.linears.size(); ++i) {
    const linear& l = weights.linears[i];
    linear_gradients& sums = result.linears[i];
    if (i < choice.matrices.size() && choice.matrices[i])
      sums = {.dense = zeros(l.dense),
              .u = zeros(l.u),
              .v = zeros(l.v),
              .c = zeros(l.c),
              .z = zeros(l.z),
              .bias = {}};
    if (choice.biases) sums.bias.resize(l.bias.size());
  }
  if (choice.norms) {
    const auto like = [](const norm_weights& norm) {
      return norm_gradients{.scale = std::vector<float>(norm.scale.size()),
                            .shift = std::vector<float>(norm.shift.size())};
    };
    result.attention_norm = like(weights.attention_norm);
    result.mlp_norm = like(weights.mlp_norm);
    result.attention_post_norm = like(weights.attention_post_norm);
    result.mlp_post_norm = like(weights.mlp_post_norm);
    result.q_norm.scale.resize(weights.q_norm.size());
    result.k_norm.scale.resize(weights.k_norm.size());
  }
  return result;
}

cpu_backward::cpu_backward(const model_config& config, const forward_options& options)
    : config_(config), options_(options), forward_(config, options), workspaces_(1) {}

loss_result cpu_backward::loss(const outer_weights& weights, std::span<const std::int32_t> ids,
                               std::int64_t window_length, const label_options& labels,
                               float* hidden) {
  const auto tokens = static_cast<std::int64_t>(ids.size());
  windows_of(tokens, window_length);
  for (const std::int32_t id : ids)
    if (id < 0 || id >= config_.vocab)
      throw std::invalid_argument("backward: token id " + std::to_string(id) +
                                  " outside the vocabulary of " + std::to_string(config_.vocab));
  const std::int64_t vocab = config_.vocab;
  const std::int64_t width = config_.hidden_size;
  const std::int64_t block = logits_block(vocab, tokens);
  const bool drawn = labels.source == label_source::drawn;
  loss_result result;
  result.labels.resize(ids.size(), no_label);
  std::vector<double> losses(ids.size());
  float_buffer logits;
  float_buffer normed;
  logits.reserve(block * vocab);
  normed.reserve(block * width);
  norm_sums unused;
  for (std::int64_t first = 0; first < tokens; first += block) {
    const std::int64_t rows = std::min(block, tokens - first);
    float* const states = hidden + first * width;
    forward_.logits(weights, states, rows, logits.data());
    parallel_for(rows, vector_grain(vocab), [&](std::int64_t begin, std::int64_t end) {
      Eigen::ArrayXd wide;
      Eigen::ArrayXf slopes; // of the soft cap
      for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t position = first + i;
        const auto at = static_cast<std::size_t>(position);
        const std::span<float> row(logits.data() + i * vocab, static_cast<std::size_t>(vocab));
        if (!std::ranges::all_of(row, [](float value) { return std::isfinite(value); }))
          throw std::runtime_error("a logit at position " + std::to_string(position) +
                                   " is not finite: the model does not compute");
        if (drawn) {
          draw_stream draws(labels.seed, first_label_stream + at);
          result.labels[at] = sample_token(row, {}, draws);
        } else if ((position + 1) % window_length != 0) {
          result.labels[at] = ids[at + 1];
        }
        if (result.labels[at] == no_label) {
          std::ranges::fill(row, 0.0f);
          continue;
        }
        Eigen::Map<Eigen::ArrayXf> values(row.data(), vocab);
        const auto cap = static_cast<float>(config_.logit_cap);
        if (cap > 0) slopes = 1.0f - (values * (1.0f / cap)).square();
        losses[at] = softmax_gradient(row, result.labels[at], wide);
        if (cap > 0) values *= slopes;
      }
    });
    std::fill_n(normed.data(), rows * width, 0.0f);
    multiply_add_back(logits.data(), rows, weights.head, normed.data());
    normalise_back(weights.final_norm.scale, !weights.final_norm.shift.empty(), states, rows,
                   nullptr, normed.data(), unused, workspaces_[0]);
    std::copy_n(normed.data(), rows * width, states);
  }
  result.sum = std::accumulate(losses.begin(), losses.end(), 0.0);
  result.predicted = tokens - std::ranges::count(result.labels, no_label);
  return result;
}

void cpu_backward::layer(const layer_weights& weights, const float* hidden, std::int64_t tokens,
                         std::int64_t window_length, float* gradient,
                         const backward_request& request) {
  run(weights, hidden, tokens, window_length, nullptr, gradient, request);
}

void cpu_backward::layer(const layer_weights& weights, const float* hidden, std::int64_t tokens,
                         std::int64_t window_length, const output_gradient& at_output,
                         float* gradient, const backward_request& request) {
  run(weights, hidden, tokens, window_length, &at_output, gradient, request);
}

void cpu_backward::run(const layer_weights& weights, const float* hidden, std::int64_t tokens,
                       std::int64_t window_length, const output_gradient* at_output,
                       float* gradient, const backward_request& request) {
  const std::int64_t windows = windows_of(tokens, window_length);
  const std::int64_t width = config_.hidden_size;
  forward_.reserve_positions(window_length);
  const group_size group =
      choose_group(backward_row_floats(config_) + low_rank_floats(config_, weights), windows,
                   window_length, thread_count(), options_);
  const std::int64_t groups = (windows + group.windows - 1) / group.windows;
  const auto slots = static_cast<std::size_t>(group.at_a_time);
  if (workspaces_.size() < slots) workspaces_.resize(slots);
  for (workspace& work : workspaces_) {
    work.forward.kept = true;
    work.forward.output = at_output != nullptr || request.parameters != nullptr ||
                          config_.post_norms || weights.experts() > 0;
  }
  const auto each = [](std::int64_t count, const auto& body) {
    if (count == 1)
      body(0);
    else
      parallel_each(count, body);
  };

  for (std::int64_t first = 0; first < groups; first += group.at_a_time) {
    const std::int64_t count = std::min(group.at_a_time, groups - first);
    const auto range = [&](std::int64_t i) {
      const std::int64_t start = (first + i) * group.windows;
      return token_range{start * window_length,
                         std::min(group.windows, windows - start) * window_length};
    };
    const auto forward = [&](std::int64_t i) {
      const token_range at = range(i);
      run_forward(weights, hidden + at.first * width, at.count, window_length,
                  workspaces_[static_cast<std::size_t>(i)]);
    };
    const auto back = [&](std::int64_t i) {
      const token_range at = range(i);
      workspace& work = workspaces_[static_cast<std::size_t>(i)];
      float* const outside = gradient != nullptr ? gradient + at.first * width : nullptr;
      float* const inside = work.state.data();
      if (at_output == nullptr) std::copy_n(outside, at.count * width, inside);
      run_back(weights, hidden + at.first * width, at.count, window_length, inside,
               outside != nullptr, request.parameters, work);
      if (outside != nullptr) std::copy_n(inside, at.count * width, outside);
    };
    if (at_output == nullptr) {
      each(count, [&](std::int64_t i) {
        forward(i);
        back(i);
      });
    } else {
      each(count, forward);
      for (std::int64_t i = 0; i < count; ++i) {
        const token_range at = range(i);
        (*at_output)(at.first, at.count, workspaces_[static_cast<std::size_t>(i)].state.data());
      }
      each(count, back);
    }
    for (std::int64_t i = 0; i < count; ++i) {
      const workspace& work = workspaces_[static_cast<std::size_t>(i)];
      if (request.observer != nullptr) observe(weights, range(i).count, work, *request.observer);
      if (request.parameters != nullptr)
        add_parameters(weights, range(i).count, work, *request.parameters);
    }
  }
}

void cpu_backward::run_forward(const layer_weights& weights, const float* hidden,
                               std::int64_t tokens, std::int64_t window_length,
                               workspace& work) const {
  work.state.reserve(tokens * config_.hidden_size);
  std::copy_n(hidden, tokens * config_.hidden_size, work.state.data());
  forward_.run(weights, work.state.data(), tokens / window_length, window_length, 0, nullptr,
               work.forward);
}

void cpu_backward::run_back(const layer_weights& weights, const float* hidden, std::int64_t tokens,
                            std::int64_t window_length, float* gradient, bool to_input,
                            const layer_gradients* wanted, workspace& work) const {
  const std::int64_t width = config_.hidden_size;
  for (const projection kind : {projection::q, projection::k, projection::v, projection::o})
    work.outputs[static_cast<std::size_t>(kind)].reserve(tokens * weights[kind].out());
  work.norm.reserve(tokens * width);
  if (work.low_rank.size() < weights.linears.size()) work.low_rank.resize(weights.linears.size());
  const auto through = [&](projection kind, float* x) {
    weights[kind].apply_back_add(work.output(kind), tokens, x,
                                 work.low_rank[static_cast<std::size_t>(kind)]);
  };

  std::fill_n(work.norm.data(), tokens * width, 0.0f);
  if (weights.experts() > 0) {
    experts_back(weights, gradient, work);
  } else {
    mlp_back(weights, tokens, gradient, wanted, work);
  }
  normalise_back(
      weights.mlp_norm.scale, !weights.mlp_norm.shift.empty(), work.forward.middle.data(), tokens,
      wanted != nullptr ? &wanted->mlp_norm : nullptr, work.norm.data(), work.mlp_norm, work);
  add(work.norm.data(), tokens * width, gradient);

  // Attention. The gradient at the heads' outputs gives way to the one at the queries.
  std::copy_n(gradient, tokens * width, work.output(projection::o));
  if (!weights.attention_post_norm.scale.empty())
    normalise_back(weights.attention_post_norm.scale, false, work.forward.attention_output.data(),
                   tokens, wanted != nullptr ? &wanted->attention_post_norm : nullptr,
                   work.output(projection::o), work.attention_post_norm, work);
  const std::int64_t q_width = config_.heads * config_.head_dim;
  std::fill_n(work.output(projection::q), tokens * q_width, 0.0f);
  through(projection::o, work.output(projection::q));
  attend_back_all(tokens, window_length, weights, work);
  turn_back(tokens, window_length, weights, wanted, work);
  const bool through_norm =
      to_input || (wanted != nullptr && !wanted->attention_norm.scale.empty());
  float* const norm = through_norm ? work.norm.data() : nullptr;
  if (through_norm) std::fill_n(norm, tokens * width, 0.0f);
  for (const projection kind : {projection::q, projection::k, projection::v})
    through(kind, norm);
  if (!through_norm) return;
  normalise_back(weights.attention_norm.scale, !weights.attention_norm.shift.empty(), hidden,
                 tokens, wanted != nullptr ? &wanted->attention_norm : nullptr, norm,
                 work.attention_norm, work);
  add(norm, tokens * width, gradient);
}

// Adds to work.norm the gradient at the norm's output.
void cpu_backward::mlp_back(const layer_weights& weights, std::int64_t tokens,
                            const float* gradient, const layer_gradients* wanted,
                            workspace& work) const {
  const std::int64_t width = config_.hidden_size;
  const std::int64_t inner = config_.intermediate_size;
  const bool gated = !weights[projection::gate].empty();
  for (const projection kind : {projection::gate, projection::up, projection::down})
    if (const linear& l = weights[kind]; !l.empty())
      work.outputs[static_cast<std::size_t>(kind)].reserve(tokens * l.out());
  const auto through = [&](projection kind, float* x) {
    weights[kind].apply_back_add(work.output(kind), tokens, x,
                                 work.low_rank[static_cast<std::size_t>(kind)]);
  };
  std::copy_n(gradient, tokens * width, work.output(projection::down));
  if (!weights.mlp_post_norm.scale.empty())
    normalise_back(weights.mlp_post_norm.scale, false, work.forward.mlp_output.data(), tokens,
                   wanted != nullptr ? &wanted->mlp_post_norm : nullptr,
                   work.output(projection::down), work.mlp_post_norm, work);
  float* const activated = work.output(gated ? projection::gate : projection::up);
  std::fill_n(activated, tokens * inner, 0.0f);
  through(projection::down, activated);
  for_each_aligned(tokens * inner, [&](std::int64_t at, std::int64_t count) {
    activate_back(config_.activation, work.forward.inner_before.data() + at,
                  gated ? work.forward.up.data() + at : nullptr, activated + at,
                  gated ? work.output(projection::up) + at : nullptr, count);
  });
  through(projection::up, work.norm.data());
  if (gated) through(projection::gate, work.norm.data());
}

// The same for a mixture.
void cpu_backward::experts_back(const layer_weights& weights, const float* gradient,
                                workspace& work) const {
  const std::int64_t width = config_.hidden_size;
  const std::int64_t inner = config_.expert_intermediate_size;
  const routing& routes = work.forward.routes;
  const std::int64_t rows = routes.row_count();
  for (const projection kind : {projection::gate, projection::up})
    work.outputs[static_cast<std::size_t>(kind)].reserve(rows * inner);
  work.outputs[static_cast<std::size_t>(projection::down)].reserve(rows * width);
  work.expert_input.reserve(rows * width);
  work.expert_weights.reserve(rows);
  const auto through = [&](projection kind, float* x) {
    for (std::int64_t e = 0; e < routes.experts(); ++e) {
      const matrix_place place(kind, e);
      const linear& l = weights[place];
      if (routes.count(e) == 0) continue;
      l.apply_back_add(work.output(kind) + routes.first(e) * l.out(), routes.count(e),
                       x + routes.first(e) * l.in(), work.low_rank[place.index()]);
    }
  };
  add_rows_back(routes, work.forward.expert_output.data(), gradient, width,
                work.output(projection::down), work.expert_weights.data());
  float* const activated = work.output(projection::gate);
  std::fill_n(activated, rows * inner, 0.0f);
  through(projection::down, activated);
  for_each_aligned(rows * inner, [&](std::int64_t at, std::int64_t count) {
    activate_back(config_.activation, work.forward.inner_before.data() + at,
                  work.forward.up.data() + at, activated + at, work.output(projection::up) + at,
                  count);
  });
  std::fill_n(work.expert_input.data(), rows * width, 0.0f);
  through(projection::up, work.expert_input.data());
  through(projection::gate, work.expert_input.data());
  add_rows(routes, work.expert_input.data(), width, false, work.norm.data());
  route_back(config_, routes, weights.router, work.expert_weights.data(), work.router,
             work.norm.data());
}

void cpu_backward::attend_back_all(std::int64_t tokens, std::int64_t window_length,
                                   const layer_weights& weights, workspace& work) const {
  const std::int64_t head_dim = config_.head_dim;
  const std::int64_t q_width = config_.heads * head_dim;
  const std::int64_t kv_width = config_.kv_heads * head_dim;
  const std::int64_t heads_per_kv = config_.heads / config_.kv_heads;
  float* const q = work.output(projection::q);
  float* const k = work.output(projection::k);
  float* const v = work.output(projection::v);
  std::fill_n(k, tokens * kv_width, 0.0f);
  std::fill_n(v, tokens * kv_width, 0.0f);
  const std::int64_t flops = 10 * window_length * window_length * head_dim * heads_per_kv;
  const std::int64_t grain = std::max<std::int64_t>(1, 100'000 / flops);
  // The query heads that share keys and values add to the same gradients, one after the other.
  parallel_for(
      tokens / window_length * config_.kv_heads, grain, [&](std::int64_t begin, std::int64_t end) {
        float_buffer scratch;
        for (std::int64_t index = begin; index < end; ++index) {
          const std::int64_t start = index / config_.kv_heads * window_length;
          const std::int64_t kv_head = index % config_.kv_heads;
          const std::int64_t kv = start * kv_width + kv_head * head_dim;
          for (std::int64_t i = 0; i < heads_per_kv; ++i) {
            const std::int64_t at = start * q_width + (kv_head * heads_per_kv + i) * head_dim;
            attend_back({.head_dim = head_dim,
                         .queries = window_length,
                         .first = 0,
                         .sliding_window = forward_.window_of(weights),
                         .scale = config_.attention_scale,
                         .cap = config_.attention_cap,
                         .q = work.forward.q.data() + at,
                         .q_stride = q_width,
                         .k = work.forward.k.data() + kv,
                         .v = work.forward.v.data() + kv,
                         .kv_stride = kv_width,
                         .out = nullptr,
                         .out_stride = q_width},
                        {.out = q + at, .q = q + at, .k = k + kv, .v = v + kv}, scratch);
          }
        }
      });
}

void cpu_backward::turn_back(std::int64_t tokens, std::int64_t window_length,
                             const layer_weights& weights, const layer_gradients* wanted,
                             workspace& work) const {
  const std::int64_t q_width = config_.heads * config_.head_dim;
  const std::int64_t kv_width = config_.kv_heads * config_.head_dim;
  float* const q = work.output(projection::q);
  float* const k = work.output(projection::k);
  const rope_table& rope = forward_.rope_of(weights);
  if (config_.family != model_family::opt)
    parallel_for(tokens, vector_grain(q_width), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t) {
        rope.rotate_back(q + t * q_width, config_.heads, t % window_length);
        rope.rotate_back(k + t * kv_width, config_.kv_heads, t % window_length);
      }
    });
  if (!config_.qk_norm) return;
  normalise_back(weights.q_norm, false, work.forward.q_before.data(), tokens * config_.heads,
                 wanted != nullptr ? &wanted->q_norm : nullptr, q, work.q_norm, work);
  normalise_back(weights.k_norm, false, work.forward.k_before.data(), tokens * config_.kv_heads,
                 wanted != nullptr ? &wanted->k_norm : nullptr, k, work.k_norm, work);
}

void cpu_backward::normalise_back(const std::vector<float>& scale, bool centred, const float* x,
                                  std::int64_t vectors, const norm_gradients* wanted, float* g,
                                  norm_sums& sums, workspace& work) const {
  const auto width = static_cast<std::int64_t>(scale.size());
  if (std::cmp_less(work.statistics.size(), vectors))
    work.statistics.resize(static_cast<std::size_t>(vectors));
  norm_statistics* const statistics = work.statistics.data();
  const auto each = [&](const auto& body) { parallel_for(vectors, vector_grain(width), body); };
  each([&](std::int64_t begin, std::int64_t end) {
    measure_norms(centred, config_.norm_eps, x + begin * width, end - begin, width,
                  statistics + begin);
  });
  if (wanted != nullptr) {
    sums.scale.assign(wanted->scale.size(), 0.0);
    sums.shift.assign(wanted->shift.size(), 0.0);
    add_norm_gradients(x, statistics, g, vectors, sums.scale, sums.shift);
  }
  each([&](std::int64_t begin, std::int64_t end) {
    norm_back(scale, centred, x + begin * width, statistics + begin, end - begin,
              g + begin * width);
  });
}

linear_observation cpu_backward::observation_of(const layer_weights& weights,
                                                const matrix_place& place, std::int64_t tokens,
                                                const workspace& work) {
  const layer_buffers& forward = work.forward;
  const bool gated = weights.experts() > 0 || !weights[projection::gate].empty();
  const bool shared = place.expert == no_expert;
  const auto input = [&] {
    switch (place.kind) {
      case projection::q:
      case projection::k:
      case projection::v:
        return forward.attention_input.data();
      case projection::o:
        return forward.heads.data();
      case projection::gate:
      case projection::up:
        return (shared ? forward.mlp_input : forward.expert_input).data();
      case projection::down:
        break;
    }
    return (gated ? forward.gate : forward.up).data();
  };
  const linear& l = weights[place];
  const std::int64_t first = shared ? 0 : forward.routes.first(place.expert);
  return {.place = place,
          .tokens = shared ? tokens : forward.routes.count(place.expert),
          .x = input() + first * l.in(),
          .in = l.in(),
          .g = work.output(place.kind) + first * l.out(),
          .out = l.out()};
}

void cpu_backward::observe(const layer_weights& weights, std::int64_t tokens, const workspace& work,
                           const gradient_observer& observer) const {
  for (const matrix_place& place : places_of(weights)) {
    const linear_observation seen = observation_of(weights, place, tokens, work);
    if (seen.tokens > 0) observer(seen);
  }
}

void cpu_backward::add_parameters(const layer_weights& weights, std::int64_t all_tokens,
                                  const workspace& work, layer_gradients& sums) const {
  for (const matrix_place& place : places_of(weights)) {
    const linear& l = weights[place];
    linear_gradients& to = sums[place];
    const linear_observation seen = observation_of(weights, place, all_tokens, work);
    const std::int64_t tokens = seen.tokens;
    if (tokens == 0) continue;
    const float* const x = seen.x;
    const float* const g = seen.g;
    const float* const low = work.forward.low_rank[place.index()].data();
    const float* const low_g = work.low_rank[place.index()].data();
    if (!to.dense.empty()) add_outer_products(g, l.out(), x, l.in(), tokens, to.dense.data());
    if (!to.u.empty()) add_outer_products(g, l.out(), low, l.rank(), tokens, to.u.data());
    if (!to.v.empty()) add_outer_products(low_g, l.rank(), x, l.in(), tokens, to.v.data());
    if (!to.z.empty()) add_outer_products(low_g, l.rank(), x, l.in(), tokens, to.z.data());
    if (!to.c.empty()) {
      float_buffer own;
      float_buffer others;
      own.reserve(tokens * l.rank());
      others.reserve(tokens * l.c.rows());
      l.gather(g, tokens, own.data(), others.data());
      add_outer_products(others.data(), l.c.rows(), low, l.rank(), tokens, to.c.data());
    }
    if (!to.bias.empty()) add_columns(g, tokens, to.bias);
  }
  add(work.attention_norm.scale, sums.attention_norm.scale);
  add(work.attention_norm.shift, sums.attention_norm.shift);
  add(work.mlp_norm.scale, sums.mlp_norm.scale);
  add(work.mlp_norm.shift, sums.mlp_norm.shift);
  add(work.attention_post_norm.scale, sums.attention_post_norm.scale);
  add(work.mlp_post_norm.scale, sums.mlp_post_norm.scale);
  add(work.q_norm.scale, sums.q_norm.scale);
  add(work.k_norm.scale, sums.k_norm.scale);
}

} // namespace ressvd_llm
