// SPDX-License-Identifier: Apache-2.0
//
// The backward pass: gradients of a loss at hidden states, at the outputs of linear layers, and of
// parameters. Layers keep nothing of their forward pass: it is run again, group of windows by
// group.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "io/config.hpp"
#include "model/buffer.hpp"
#include "model/elementwise.hpp"
#include "model/forward.hpp"
#include "model/layer.hpp"

namespace ressvd_llm {

// What a position should predict: the token that follows in its window (the last position of a
// window then has none), or a token drawn from the model's own distribution there. Gradients for
// drawn labels have the Fisher information as their second moment.
enum class label_source : std::uint8_t { next_token, drawn };

struct label_options {
  label_source source = label_source::next_token;
  // Of drawn labels: that of a position depends on the seed, its number and its logits alone.
  std::uint64_t seed = 0;
};

struct loss_result {
  double sum = 0; // Σ −log p(label), in nats
  std::int64_t predicted = 0;
  std::vector<std::int32_t> labels; // of every position; −1: none
};

// A linear layer's input x (tokens × in) and the loss's gradient g at its output (tokens × out),
// row-major.
struct linear_observation {
  matrix_place place;
  std::int64_t tokens = 0; // an expert's own
  const float* x = nullptr;
  std::int64_t in = 0;
  const float* g = nullptr;
  std::int64_t out = 0;
};

// Called with every linear layer that tokens went through; the arrays are valid during the call
// only.
using gradient_observer = std::function<void(const linear_observation&)>;

// Called with a layer's output at the tokens [first, first + tokens), whole windows, tokens ×
// hidden_size, to be replaced by the loss's gradient there.
using output_gradient = std::function<void(std::int64_t first, std::int64_t tokens, float* output)>;

// Sums of gradients in the form of the parameters, row-major. What is empty is not wanted.
struct linear_gradients {
  std::vector<float> dense;
  std::vector<float> u;
  std::vector<float> v;
  std::vector<float> c;
  std::vector<float> z;
  std::vector<float> bias;
};

struct norm_gradients {
  std::vector<float> scale;
  std::vector<float> shift;
};

struct layer_gradients {
  std::vector<linear_gradients> linears = // by matrix_place::index
      std::vector<linear_gradients>(projection_count);
  norm_gradients attention_norm;
  norm_gradients mlp_norm;
  norm_gradients attention_post_norm;
  norm_gradients mlp_post_norm;
  norm_gradients q_norm; // without shift
  norm_gradients k_norm;

  linear_gradients& operator[](const matrix_place& place) { return linears[place.index()]; }
  const linear_gradients& operator[](const matrix_place& place) const {
    return linears[place.index()];
  }
};

struct gradient_choice {
  // The dense matrix, or all parts of a factored one; by matrix_place::index, and none beyond.
  std::vector<bool> matrices = std::vector<bool>(projection_count, false);
  bool biases = false;
  bool norms = false;
};

// Zeros for what is chosen of the layer's parameters.
layer_gradients zero_gradients(const layer_weights& weights, const gradient_choice& choice);

// What a layer's backward pass gives besides the gradient at its input.
struct backward_request {
  const gradient_observer* observer = nullptr;
  layer_gradients* parameters = nullptr; // added to
};

// The backward pass of cpu_forward. Groups, threads and the order of observations are as there:
// observers are called on this thread, with windows in order and one or more whole windows a call,
// and for those in the order of linear_modules. Parameters are summed in the same order. One object
// is used by one thread at a time.
class cpu_backward {
 public:
  explicit cpu_backward(const model_config& config, const forward_options& options = {});

  // The loss of windows of ids, summed over positions, and in place of the hidden states after the
  // last layer (ids.size() × hidden_size) its gradient there. Throws std::invalid_argument for ids
  // outside the vocabulary and std::runtime_error for a logit that is not finite.
  loss_result loss(const outer_weights& weights, std::span<const std::int32_t> ids,
                   std::int64_t window_length, const label_options& labels, float* hidden);

  // One layer with this input: in place of the loss's gradient at its output the one at its input.
  void layer(const layer_weights& weights, const float* hidden, std::int64_t tokens,
             std::int64_t window_length, float* gradient, const backward_request& request = {});

  // The same where the gradient at the output depends on the output: one forward and one backward
  // pass. `at_output` is called like an observer. Without `gradient` (tokens × hidden_size) the one
  // at the input is not computed.
  void layer(const layer_weights& weights, const float* hidden, std::int64_t tokens,
             std::int64_t window_length, const output_gradient& at_output, float* gradient,
             const backward_request& request = {});

 private:
  struct norm_sums {
    std::vector<double> scale;
    std::vector<double> shift;
  };

  // Buffers of one group of windows. Gradients bear the names of what they belong to.
  struct workspace {
    layer_buffers forward;
    float_buffer state; // the layer's input, then its output, then the gradient there
    float_buffer norm;  // of either norm's output
    std::array<float_buffer, projection_count> outputs; // of the experts by their rows
    std::vector<float_buffer> low_rank;                 // by matrix_place::index
    float_buffer expert_input;
    float_buffer expert_weights; // of the rows
    float_buffer router;
    std::vector<norm_statistics> statistics;
    norm_sums attention_norm;
    norm_sums mlp_norm;
    norm_sums attention_post_norm;
    norm_sums mlp_post_norm;
    norm_sums q_norm;
    norm_sums k_norm;

    float* output(projection kind) { return outputs[static_cast<std::size_t>(kind)].data(); }
    const float* output(projection kind) const {
      return outputs[static_cast<std::size_t>(kind)].data();
    }
  };

  // Tokens of one group, from `first` on.
  struct token_range {
    std::int64_t first = 0;
    std::int64_t count = 0;
  };

  void run(const layer_weights& weights, const float* hidden, std::int64_t tokens,
           std::int64_t window_length, const output_gradient* at_output, float* gradient,
           const backward_request& request);
  void run_forward(const layer_weights& weights, const float* hidden, std::int64_t tokens,
                   std::int64_t window_length, workspace& work) const;
  void run_back(const layer_weights& weights, const float* hidden, std::int64_t tokens,
                std::int64_t window_length, float* gradient, bool to_input,
                const layer_gradients* wanted, workspace& work) const;
  void mlp_back(const layer_weights& weights, std::int64_t tokens, const float* gradient,
                const layer_gradients* wanted, workspace& work) const;
  void experts_back(const layer_weights& weights, const float* gradient, workspace& work) const;
  void attend_back_all(std::int64_t tokens, std::int64_t window_length,
                       const layer_weights& weights, workspace& work) const;
  void turn_back(std::int64_t tokens, std::int64_t window_length, const layer_weights& weights,
                 const layer_gradients* wanted, workspace& work) const;
  void normalise_back(const std::vector<float>& scale, bool centred, const float* x,
                      std::int64_t vectors, const norm_gradients* wanted, float* g, norm_sums& sums,
                      workspace& work) const;
  void observe(const layer_weights& weights, std::int64_t tokens, const workspace& work,
               const gradient_observer& observer) const;
  void add_parameters(const layer_weights& weights, std::int64_t tokens, const workspace& work,
                      layer_gradients& sums) const;
  static linear_observation observation_of(const layer_weights& weights, const matrix_place& place,
                                           std::int64_t tokens, const workspace& work);

  model_config config_;
  forward_options options_;
  cpu_forward forward_;
  std::vector<workspace> workspaces_;
};

// Bytes of the buffers that a backward pass of dense layers over windows of this length takes with
// `threads` threads.
std::uint64_t backward_buffers(const model_config& config, std::int64_t window_length,
                               std::int64_t threads, const forward_options& options = {});

} // namespace ressvd_llm
