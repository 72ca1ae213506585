// SPDX-License-Identifier: Apache-2.0
#include "compress/block_refinement.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <numeric>
#include <utility>

#include <ressvd/compiled.hpp>

#include "model/generation.hpp"
#include "model/parallel.hpp"

namespace ressvd_llm {
namespace {

constexpr std::int64_t most_warm_up_steps = 20;
constexpr double rising = 4; // a loss, over that of the closed form
constexpr std::int64_t most_halvings = 3;

// Draws apart from those of texts and labels.
constexpr std::uint64_t first_order_stream = std::uint64_t{1} << 62;

using optimiser = ressvd::adamw<ressvd::eigen_backend<float>>;
using parameter = ressvd::adamw_parameter<ressvd::eigen_backend<float>>;
using values_of_all = std::vector<std::vector<float>>;

// The training windows in the order of an epoch: the same in a resumed run.
std::vector<std::int64_t> order_of(std::int64_t windows, std::uint64_t seed, std::int64_t layer,
                                   std::int64_t epoch) {
  std::vector<std::int64_t> order(static_cast<std::size_t>(windows));
  std::iota(order.begin(), order.end(), 0);
  draw_stream draws(seed, first_order_stream + (static_cast<std::uint64_t>(layer) << 32) +
                              static_cast<std::uint64_t>(epoch));
  for (std::size_t left = order.size(); left > 1; --left)
    std::swap(order[left - 1],
              order[static_cast<std::size_t>(draws.next() * static_cast<double>(left))]);
  return order;
}

void append_window(std::span<const float> all, std::int64_t window, std::int64_t size,
                   std::vector<float>& to) {
  const auto first = all.begin() + window * size;
  to.insert(to.end(), first, first + size);
}

bool trains(const linear& l, const refine_options& options) {
  return l.factored() || (options.dense && !l.empty());
}

} // namespace

double window_errors::relative(std::int64_t first, std::int64_t last) const {
  const auto sum = [&](const std::vector<double>& values) {
    return std::accumulate(values.begin() + first, values.begin() + last, 0.0);
  };
  const double target = sum(targets);
  return target > 0 ? sum(differences) / target : 0;
}

window_errors errors_of(std::span<const float> output, std::span<const float> target,
                        std::int64_t window_size) {
  const auto windows = static_cast<std::int64_t>(output.size()) / window_size;
  window_errors errors{std::vector<double>(static_cast<std::size_t>(windows)),
                       std::vector<double>(static_cast<std::size_t>(windows))};
  parallel_for(windows, 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t w = first; w < last; ++w) {
      double difference = 0;
      double reference = 0;
      for (std::int64_t i = w * window_size; i < (w + 1) * window_size; ++i) {
        const auto at = static_cast<std::size_t>(i);
        const double t = static_cast<double>(target[at]);
        const double d = static_cast<double>(output[at]) - t;
        difference += d * d;
        reference += t * t;
      }
      errors.differences[static_cast<std::size_t>(w)] = difference;
      errors.targets[static_cast<std::size_t>(w)] = reference;
    }
  });
  return errors;
}

double squared_error_gradient(const float* target, std::int64_t count, double scale,
                              float* output) {
  double sum = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const double d = static_cast<double>(output[i]) - static_cast<double>(target[i]);
    sum += d * d;
    output[i] = static_cast<float>(2 * scale * d);
  }
  return scale * sum;
}

trained_block::trained_block(const layer_weights& original, const refine_options& options)
    : weights(original) {
  gradient_choice choice{.norms = options.norms};
  choice.matrices.resize(weights.linears.size());
  for (std::size_t i = 0; i < weights.linears.size(); ++i)
    choice.matrices[i] = trains(weights.linears[i], options);
  gradients = zero_gradients(weights, choice);
  for (std::size_t i = 0; i < weights.linears.size(); ++i) {
    linear& l = weights.linears[i];
    if (!choice.matrices[i]) continue;
    const linear_gradients& g = gradients.linears[i];
    if (l.pivoted()) {
      own(l.c, g.c);
      own(l.z, g.z);
    } else if (l.factored()) {
      own_pair(l, g);
    } else {
      own(l.dense, g.dense);
    }
  }
  if (!options.norms) return;
  const std::vector<std::vector<float>*> scales = norm_scales(weights);
  const std::vector<const norm_gradients*> sums{&gradients.attention_norm, &gradients.mlp_norm,
                                                &gradients.q_norm, &gradients.k_norm};
  for (std::size_t i = 0; i < scales.size(); ++i)
    tensors.push_back(
        {scales[i]->data(), sums[i]->scale.data(), static_cast<std::int64_t>(scales[i]->size())});
}

void trained_block::own(weight_matrix& matrix, const std::vector<float>& gradient) {
  const auto values = std::make_shared<std::vector<float>>(matrix.values());
  matrix = weight_matrix(matrix.rows(), matrix.cols(), values);
  tensors.push_back({values->data(), gradient.data(), static_cast<std::int64_t>(values->size())});
  masters_.push_back(values);
}

void trained_block::own_pair(linear& l, const linear_gradients& gradient) {
  ressvd::eigen_backend<float> be(make_host_context());
  ressvd::low_rank<float> pair{be.allocate(l.out(), l.rank()), be.allocate(l.rank(), l.in())};
  const std::vector<float> u = l.u.values();
  const std::vector<float> v = l.v.values();
  be.copy(ressvd::row_major(u.data(), l.out(), l.rank()), pair.u.ref());
  be.copy(ressvd::row_major(v.data(), l.rank(), l.in()), pair.v.ref());
  ressvd::split(be, pair, ressvd::scale_split::balanced);
  own(l.u, gradient.u);
  own(l.v, gradient.v);
  const auto balanced = [&](const ressvd::matrix<float>& factor, const tensor& to) {
    be.copy(factor.ref(), ressvd::row_major(to.values, factor.rows(), factor.cols()));
  };
  balanced(pair.u, tensors[tensors.size() - 2]);
  balanced(pair.v, tensors.back());
}

void trained_block::clear_gradients() {
  const auto clear = [](std::vector<float>& values) { std::ranges::fill(values, 0.0f); };
  for (linear_gradients& g : gradients.linears) {
    for (std::vector<float>* part : {&g.dense, &g.u, &g.v, &g.c, &g.z, &g.bias})
      clear(*part);
  }
  for (norm_gradients* g :
       {&gradients.attention_norm, &gradients.mlp_norm, &gradients.q_norm, &gradients.k_norm}) {
    clear(g->scale);
    clear(g->shift);
  }
}

values_of_all trained_block::copy() const {
  values_of_all values;
  for (const tensor& t : tensors)
    values.emplace_back(t.values, t.values + t.size);
  return values;
}

void trained_block::restore(const values_of_all& values) {
  for (std::size_t i = 0; i < tensors.size(); ++i)
    std::ranges::copy(values[i], tensors[i].values);
}

block_refinement::block_refinement(const model_config& config, const refine_options& options,
                                   std::uint64_t seed)
    : config_(config), options_(options), seed_(seed), forward_(config), backward_(config) {}

std::int64_t block_refinement::steps(std::int64_t training_windows) const {
  return options_.epochs * ((training_windows + options_.batch - 1) / options_.batch);
}

refined_block block_refinement::refine(std::int64_t layer, layer_weights& weights,
                                       const block_samples& samples,
                                       const std::function<void()>& stepped) {
  const auto start = std::chrono::steady_clock::now();
  const std::int64_t width = config_.hidden_size;
  const std::int64_t length = samples.window_length;
  const std::int64_t size = length * width;
  const std::int64_t training = samples.training_windows;
  const std::int64_t windows = static_cast<std::int64_t>(samples.input.size()) / size;

  std::vector<float> outputs(samples.input.begin(), samples.input.end());
  forward_.layer(weights, outputs.data(), windows * length, length, nullptr);
  const window_errors closed = errors_of(outputs, samples.target, size);
  refined_block report{.layer = layer,
                       .before = {closed.relative(0, training), closed.relative(training, windows)},
                       .after = {},
                       .epochs = 0,
                       .trained_epochs = 0,
                       .halvings = 0,
                       .rate = options_.rate,
                       .seconds = 0};

  trained_block block(weights, options_);
  values_of_all best = block.copy();
  const values_of_all centre = options_.decay > 0 ? best : values_of_all{};
  double best_error = report.before.heldout;
  std::vector<parameter> parameters;
  for (std::size_t i = 0; i < block.tensors.size(); ++i) {
    const trained_block::tensor& t = block.tensors[i];
    parameters.push_back(
        {.value = {t.values, t.size, 1, t.size}, .gradient = {t.gradient, t.size, 1, t.size}});
    if (!centre.empty()) parameters.back().centre = {centre[i].data(), t.size, 1, t.size};
  }
  const ressvd::eigen_backend<float> be(make_host_context());
  optimiser steps_of(be, parameters, {.decay = options_.decay});

  const auto heldout_target = samples.target.subspan(static_cast<std::size_t>(training * size));
  const auto heldout_error = [&] {
    outputs.assign(samples.input.begin() + training * size, samples.input.end());
    forward_.layer(block.weights, outputs.data(), (windows - training) * length, length, nullptr);
    return errors_of(outputs, heldout_target, size).relative(0, windows - training);
  };

  const std::int64_t all = steps(training);
  const std::int64_t warm_up = (std::min)(most_warm_up_steps, all / 3);
  std::int64_t step = 0;
  std::vector<float> x;
  std::vector<float> target;
  // False where the step is to be undone.
  const auto take = [&](const std::vector<std::int64_t>& batch) {
    x.clear();
    target.clear();
    double squares = 0;
    double before = 0;
    for (const std::int64_t window : batch) {
      append_window(samples.input, window, size, x);
      append_window(samples.target, window, size, target);
      squares += closed.targets[static_cast<std::size_t>(window)];
      before += closed.differences[static_cast<std::size_t>(window)];
    }
    if (squares == 0) return true;
    block.clear_gradients();
    double loss = 0;
    backward_.layer(block.weights, x.data(), std::ssize(batch) * length, length,
                    [&](std::int64_t first, std::int64_t tokens, float* output) {
                      loss += squared_error_gradient(target.data() + first * width, tokens * width,
                                                     1 / squares, output);
                    },
                    nullptr, {.parameters = &block.gradients});
    if (!(loss <= rising * before / squares)) return false;
    // Warm again after a step that was undone.
    const double warmth = static_cast<double>(steps_of.steps() + 1) /
                          static_cast<double>((std::max)(warm_up, std::int64_t{1}));
    const double share = (std::min)(ressvd::warmup_cosine(step, all, warm_up), warmth);
    return steps_of.step(report.rate * share).finite;
  };

  // Back to the best state; false where that has been done too often.
  const auto undo = [&] {
    block.restore(best);
    steps_of.forget();
    report.rate /= 2;
    return ++report.halvings <= most_halvings;
  };
  bool going = true;
  const auto exhausted = [&] {
    return options_.patience > 0 && report.trained_epochs - report.epochs >= options_.patience;
  };
  for (std::int64_t epoch = 0; going && epoch < options_.epochs; ++epoch) {
    const auto order = order_of(training, seed_, layer, epoch);
    for (std::int64_t first = 0; going && first < training; first += options_.batch, ++step) {
      const auto last = (std::min)(training, first + options_.batch);
      if (!take({order.begin() + first, order.begin() + last})) going = undo();
      stepped();
    }
    if (!going) break;
    report.trained_epochs = epoch + 1;
    const double error = heldout_error();
    if (!std::isfinite(error)) {
      going = undo();
    } else if (error < best_error) {
      best = block.copy();
      best_error = error;
      report.epochs = epoch + 1;
    } else if (exhausted()) {
      break;
    }
  }
  if (report.epochs > 0) {
    block.restore(best);
    weights = block.weights;
  }
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

} // namespace ressvd_llm
