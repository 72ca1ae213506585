// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/checkpoint.hpp"
#include "io/config.hpp"
#include "model/linear.hpp"

namespace ressvd_llm {

// The linear layers of a transformer layer. OPT: o is out_proj, up is fc1, down is fc2, and there
// is no gate.
enum class projection : std::uint8_t { q, k, v, o, gate, up, down };
inline constexpr std::size_t projection_count = 7;

// Projections of one group read the same input: q, k, v; o; gate, up; down.
enum class input_group : std::uint8_t { attention, attention_output, mlp, mlp_output };
inline constexpr std::size_t input_group_count = 4;

std::string_view name_of(projection kind);   // "q", "gate"
std::string_view name_of(input_group group); // "attention", "mlp_output"

// For a matrix or an input that is no expert's.
inline constexpr std::int64_t no_expert = -1;

// A linear layer's place in its transformer layer: gate, up and down may be an expert's.
struct matrix_place {
  matrix_place(projection of = projection::q, std::int64_t by = no_expert) : kind(of), expert(by) {}

  // Those of the experts follow the others.
  std::size_t index() const {
    const auto number = static_cast<std::size_t>(kind);
    return expert == no_expert ? number : number + 3 * (static_cast<std::size_t>(expert) + 1);
  }
  friend bool operator==(const matrix_place&, const matrix_place&) = default;

  projection kind;
  std::int64_t expert;
};

// What the projections of a group read: the expert's tokens where they are an expert's.
struct layer_input {
  layer_input(input_group of = input_group::attention, std::int64_t by = no_expert)
      : group(of), expert(by) {}

  std::size_t index() const {
    const auto number = static_cast<std::size_t>(group);
    return expert == no_expert ? number : number + 2 * (static_cast<std::size_t>(expert) + 1);
  }
  friend bool operator==(const layer_input&, const layer_input&) = default;

  input_group group;
  std::int64_t expert;
};

std::string name_of(const matrix_place& place); // "q", "gate of expert 3"
std::string name_of(const layer_input& input);  // "mlp_output", "mlp of expert 3"

// A compressible matrix of a layer, as the checkpoint names it.
struct linear_module {
  std::string prefix; // "model.layers.3.self_attn.q_proj"
  matrix_place place;
  layer_input input;
  std::int64_t out = 0;
  std::int64_t in = 0;
  bool has_bias = false;

  std::string weight_name() const; // "….q_proj.weight", dense
  std::string u_name() const; // "….q_u_proj.weight" (out × rank); OPT's fc1: "….fc1_u.weight"
  std::string v_name() const; // "….q_v_proj.weight" (rank × in)
  std::string c_name() const; // "….q_c_proj.weight" (out − rank × rank)
  std::string z_name() const; // "….q_z_proj.weight" (rank × in)
  std::string order_name() const;  // "….q_c_proj.rows" (out numbers)
  std::string bias_name() const;   // "….q_proj.bias", dense
  std::string u_bias_name() const; // "….q_u_proj.bias", of a pair
  std::string c_bias_name() const; // "….q_c_proj.bias", pivoted
};

// All of them in the order in which the forward pass reaches them; the modules of an input are
// consecutive.
std::vector<linear_module> linear_modules(const model_config& config, std::int64_t layer);

// Scale and shift of a norm; shift is empty for RMS norms.
struct norm_weights {
  std::vector<float> scale;
  std::vector<float> shift;
};

struct layer_weights {
  std::vector<linear> linears = std::vector<linear>(projection_count); // by matrix_place::index
  weight_matrix router;             // experts × hidden, or empty
  norm_weights attention_norm;      // before q, k, v
  norm_weights mlp_norm;            // before gate, up
  norm_weights attention_post_norm; // of what o gives, or empty
  norm_weights mlp_post_norm;       // of what down gives
  std::vector<float> q_norm;        // head_dim, or empty
  std::vector<float> k_norm;
  bool full_attention = false; // although the config has a sliding window
  std::int64_t index = -1;     // of the layer, for messages

  std::int64_t experts() const { return router.rows(); }
  linear& operator[](const matrix_place& place) { return linears[place.index()]; }
  const linear& operator[](const matrix_place& place) const { return linears[place.index()]; }
};

// The places of the matrices that are there, in the order of linear_modules.
std::vector<matrix_place> places_of(const layer_weights& weights);

// The scales of a layer's norms: before attention, before the MLP and, where they are, of q and k.
std::vector<std::vector<float>*> norm_scales(layer_weights& weights);
std::vector<const std::vector<float>*> norm_scales(const layer_weights& weights);
// Their names in the checkpoint, in the same order.
std::vector<std::string> norm_scale_names(const model_config& config, std::int64_t layer);

// How matrices are held: converted to float32 once (4 bytes a parameter), or left in the mapped
// file and converted piece by piece whenever they are used (no memory of our own; the checkpoint
// must outlive them).
enum class weight_storage : std::uint8_t { float32, mapped };

// The rank of a factored matrix, nothing for a dense one. Throws file_error, naming file and
// tensor, for a matrix that is missing, present in two forms or of another shape than the
// module's.
std::optional<std::int64_t> rank_of(const checkpoint& source, const linear_module& module);

// Whether the checkpoint has any part of the matrix's pivoted form.
bool is_pivoted(const checkpoint& source, const linear_module& module);

// The layer with the most parameters in its matrices.
std::int64_t largest_layer(const model_config& config);

// The names of the tensors that count as parameters: all but the orders of pivoted matrices.
std::vector<std::string> parameter_names(const checkpoint& source, const model_config& config);

// The tensor that holds the embedding: "model.embed_tokens.weight", or the head's name where the
// two are one tensor and the checkpoint stores it under that name alone.
std::string embedding_name(const checkpoint& source, const model_config& config);
// The name under which transformers looks for it.
std::string canonical_embedding_name(const model_config& config);

// Throws file_error unless the embedding and the matrices of all layers have the shapes that the
// config says. What is computed from the config is then bounded by what the files hold.
void require_matrices(const checkpoint& source, const model_config& config);

// One layer of the checkpoint; each matrix dense, a pair or pivoted by which tensors exist. Throws
// file_error, naming file and tensor, for missing, misshapen or non-finite tensors, for a matrix
// present in two forms, for an order that is no permutation, and for a bias that the config does
// not announce.
layer_weights load_layer(const checkpoint& source, const model_config& config, std::int64_t layer,
                         weight_storage storage = weight_storage::float32);

// What surrounds the layers.
struct outer_weights {
  weight_matrix embedding; // vocab × hidden
  weight_matrix positions; // OPT: (max_positions + 2) × hidden; else empty
  norm_weights final_norm;
  weight_matrix head; // vocab × hidden; shares the embedding's values when tied
};

outer_weights load_outer(const checkpoint& source, const model_config& config,
                         weight_storage storage = weight_storage::float32);

} // namespace ressvd_llm
