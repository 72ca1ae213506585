// SPDX-License-Identifier: Apache-2.0
//
// Gradient steps on the factors of one transformer block, from their closed form on, so that the
// block's output o comes close to a target t: the loss of some windows is Σ(o − t)²/Σt². AdamW,
// whose rate rises over the first steps and falls along a cosine. Windows that are held out judge
// the state after each epoch; the best one is kept, the closed form unless another is better.
//
// A step whose loss or gradient is not finite, or whose loss is four times that of the closed form,
// is undone with all since the best state; the rate is halved and rises anew. The fourth one ends
// the block.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "compress/compression_report.hpp"
#include "compress/model_passes.hpp"
#include "compress/options.hpp"
#include "model/backward.hpp"

namespace ressvd_llm {

// What a block is trained on: states before it and what should come out, windows one after the
// other, the first of them for training and the rest held out.
struct block_samples {
  std::span<const float> input;
  std::span<const float> target;
  std::int64_t window_length = 0;
  std::int64_t training_windows = 0;
};

// One thread at a time may use it.
class block_refinement {
 public:
  block_refinement(const model_config& config, const refine_options& options, std::uint64_t seed);

  // Trains the block's factors, its dense matrices and the scales of its norms where the options
  // say so, in place; where the closed form is kept, nothing changes. Equal arguments give equal
  // bits with equal threads. `stepped` is called after every step. The errors after it are left to
  // the caller.
  refined_block refine(std::int64_t layer, layer_weights& weights, const block_samples& samples,
                       const std::function<void()>& stepped);

  // Steps of a block at most.
  std::int64_t steps(std::int64_t training_windows) const;

 private:
  model_config config_;
  refine_options options_;
  std::uint64_t seed_;
  cpu_forward forward_;
  cpu_backward backward_;
};

// Squared error and squared target of every window.
struct window_errors {
  std::vector<double> differences;
  std::vector<double> targets;

  // Σ(o − t)²/Σt² over windows [first, last); 0 where there is nothing to differ from.
  double relative(std::int64_t first, std::int64_t last) const;
};

window_errors errors_of(std::span<const float> output, std::span<const float> target,
                        std::int64_t window_size);

// In place of outputs the loss's gradient there, 2(o − t)·scale; returns Σ(o − t)²·scale.
double squared_error_gradient(const float* target, std::int64_t count, double scale, float* output);

// The factors of pairs and the like as float32 values that can be changed in place, pairs with
// equal norms of U's columns and V's rows.
struct trained_block {
  struct tensor {
    float* values = nullptr;
    const float* gradient = nullptr;
    std::int64_t size = 0;
  };

  trained_block(const layer_weights& original, const refine_options& options);
  trained_block(const trained_block&) = delete;
  trained_block& operator=(const trained_block&) = delete;

  void clear_gradients();
  std::vector<std::vector<float>> copy() const;
  void restore(const std::vector<std::vector<float>>& values);

  layer_weights weights; // reads the values
  layer_gradients gradients;
  std::vector<tensor> tensors;

 private:
  void own(weight_matrix& matrix, const std::vector<float>& gradient);
  void own_pair(linear& l, const linear_gradients& gradient);

  std::vector<std::shared_ptr<std::vector<float>>> masters_;
};

} // namespace ressvd_llm
