// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "io/config.hpp"
#include "model/attention.hpp"
#include "model/buffer.hpp"
#include "model/engine_matrix.hpp"
#include "model/layer.hpp"
#include "model/mixture.hpp"

namespace ressvd_llm {

// An input of linear layers, tokens × features, where the engine has it.
struct input_observation {
  layer_input input;
  activation_view x;
  // An expert's tokens, as numbered in the call of layer(), ascending; otherwise empty.
  std::span<const std::int64_t> positions = {};
};

// Called with every input that has tokens; the views are valid during the call only.
using input_observer = std::function<void(const input_observation&)>;

// Where a model's forward pass runs. Hidden states are the engine's, a row of hidden_size a token;
// tokens = windows × window_length, and every window is a sequence of its own that starts at
// position 0.
class forward_engine {
 public:
  virtual ~forward_engine() = default;

  // The embeddings of the ids. Throws std::invalid_argument for an id outside the vocabulary, for
  // ids that are no multiple of window_length, and for windows longer than a learned position
  // table.
  virtual engine_matrix embed(const outer_weights& weights, std::span<const std::int32_t> ids,
                              std::int64_t window_length) = 0;

  // One layer, in place. The observer, if any, is called on this thread, with windows in order
  // and one or more whole windows a call; the inputs of those windows follow each other in the
  // order of linear_modules. Equal calls see equal pieces.
  virtual void layer(const layer_weights& weights, engine_matrix& hidden,
                     std::int64_t window_length, const input_observer* observer = nullptr) = 0;

  // Says which layer comes after the next call of layer(), so that its weights may be on their way
  // by then.
  virtual void announce(const layer_weights&) {}

  // Final norm and head of some rows of the hidden states: `logits` becomes count × vocab, in its
  // old place where that fits.
  virtual void logits(const outer_weights& weights, const engine_matrix& hidden, std::int64_t first,
                      std::int64_t count, engine_matrix& logits) = 0;

  // Hidden states from the host, and on the host what an observer was shown.
  virtual engine_matrix upload(std::vector<float> hidden) = 0;
  virtual std::vector<float> download(const activation_view& x) = 0;
};

// OPT reserves the first two rows of its position table.
inline constexpr std::int64_t opt_position_offset = 2;

// Throws std::invalid_argument for ids that are no multiple of `count`, outside the vocabulary, or
// beyond a learned position table when their positions begin with `first`.
void check_ids(const model_config& config, const outer_weights& weights,
               std::span<const std::int32_t> ids, std::int64_t count, std::int64_t first);

// Keys that a query of the layer sees at most; 0: all before it.
std::int64_t window_of(const model_config& config, const layer_weights& weights);

// Keys and values that one layer keeps of a batch of sequences of equal length.
struct layer_cache {
  std::int64_t sequences = 0;
  std::int64_t capacity = 0; // positions of each sequence
  std::vector<float> keys;   // sequences × kv_heads × capacity × head_dim: each head one stream
  std::vector<float> values;
};

layer_cache make_layer_cache(const model_config& config, std::int64_t sequences,
                             std::int64_t capacity);

struct forward_options {
  // Windows pass through a layer in groups. Each thread works on a group of its own if the buffers
  // of about private_tokens tokens stay below private_buffers (small models) and there are enough
  // groups; otherwise all threads share the work on one group of about shared_tokens.
  std::int64_t private_tokens = 512;
  std::uint64_t private_buffers = std::uint64_t{32} << 20;
  std::int64_t shared_tokens = 2048;
};

// Buffers of one group of windows, each tokens × its width.
struct layer_buffers {
  float_buffer attention_input;
  float_buffer q;
  float_buffer k;
  float_buffer v;
  float_buffer heads; // their outputs side by side: the output projection's input
  float_buffer mlp_input;
  float_buffer gate;
  float_buffer up;
  float_buffer attention_output; // of o and down, where a norm follows
  float_buffer mlp_output;

  // Of a mixture, whose gate and up are of the experts' rows, too.
  routing routes;
  float_buffer expert_input;
  float_buffer expert_output;

  // Whether the layer's output is wanted, or only these buffers.
  bool output = true;

  // What a backward pass reads besides, written where `kept`.
  bool kept = false;
  float_buffer q_before; // before the norm, if there is one
  float_buffer k_before;
  float_buffer middle;                // the hidden state between attention and MLP
  float_buffer inner_before;          // gate, or up without one, before the activation
  std::vector<float_buffer> low_rank; // Vx or Zx of factored matrices, by matrix_place::index
};

// The forward pass in float32 on the CPU, on the program's threads. One object is used by one
// thread at a time.
class cpu_forward final : public forward_engine {
 public:
  explicit cpu_forward(const model_config& config, const forward_options& options = {});

  engine_matrix embed(const outer_weights& weights, std::span<const std::int32_t> ids,
                      std::int64_t window_length) override;
  void layer(const layer_weights& weights, engine_matrix& hidden, std::int64_t window_length,
             const input_observer* observer = nullptr) override;
  void logits(const outer_weights& weights, const engine_matrix& hidden, std::int64_t first,
              std::int64_t count, engine_matrix& logits) override;
  engine_matrix upload(std::vector<float> hidden) override;
  std::vector<float> download(const activation_view& x) override;

  // The same in memory of the caller.
  void embed(const outer_weights& weights, std::span<const std::int32_t> ids,
             std::int64_t window_length, float* hidden);
  void layer(const layer_weights& weights, float* hidden, std::int64_t tokens,
             std::int64_t window_length, const input_observer* observer);
  void logits(const outer_weights& weights, const float* hidden, std::int64_t tokens,
              float* logits);

  // The same for the continuation of sequences: `count` new tokens of each stand at positions
  // [first, first + count), ids and hidden states grouped by sequence.
  void embed_next(const outer_weights& weights, std::span<const std::int32_t> ids,
                  std::int64_t count, std::int64_t first, float* hidden);
  void layer_next(const layer_weights& weights, float* hidden, std::int64_t count,
                  std::int64_t first, layer_cache& cache);

 private:
  friend class cpu_backward; // runs the groups of a layer again, and turns positions back

  void run(const layer_weights& weights, float* hidden, std::int64_t sequences, std::int64_t count,
           std::int64_t first, layer_cache* cache, layer_buffers& work) const;
  void run_experts(const layer_weights& weights, float* hidden, std::int64_t tokens,
                   layer_buffers& work) const;
  void attend_all(std::int64_t sequences, std::int64_t count, std::int64_t first,
                  std::int64_t window, const layer_cache* cache, layer_buffers& work) const;
  void add_normalised(const norm_weights& norm, const float* x, std::int64_t tokens,
                      float* hidden) const;
  void reserve_positions(std::int64_t count);
  const rope_table& rope_of(const layer_weights& weights) const;
  std::int64_t window_of(const layer_weights& weights) const;
  void observe(const layer_weights& weights, const layer_buffers& work, std::int64_t first,
               std::int64_t tokens, const input_observer& observer) const;
  void normalise(const norm_weights& norm, const float* x, std::int64_t tokens, float* y) const;

  model_config config_;
  forward_options options_;
  rope_table rope_;
  std::optional<rope_table> local_rope_;
  std::vector<layer_buffers> workspaces_;
};

// Floats of the buffers of a layer's MLP or experts a token.
std::int64_t mlp_row_floats(const model_config& config);

// Bytes of the buffers that a pass over windows of this length takes with `threads` threads.
std::uint64_t forward_buffers(const model_config& config, std::int64_t window_length,
                              std::int64_t threads, const forward_options& options = {});

} // namespace ressvd_llm
