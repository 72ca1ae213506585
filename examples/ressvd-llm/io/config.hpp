// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "io/dtype.hpp"

namespace ressvd_llm {

enum class model_family {
  llama,
  mistral,
  opt,
  qwen2,
  qwen3,
  gemma2,
  gemma3,
  phi3,
  mixtral,
  qwen3_moe
};
enum class activation_kind { silu, relu, gelu, gelu_tanh };
enum class rope_scaling { none, linear, llama3, factors };

// Rotary position embedding; not used by OPT.
struct rope_config {
  double theta = 10000.0;
  rope_scaling scaling = rope_scaling::none;
  double factor = 1.0;                     // linear, llama3
  double low_freq_factor = 1.0;            // llama3
  double high_freq_factor = 4.0;           // llama3
  std::int64_t original_max_positions = 0; // llama3
  std::vector<double> factors;             // factors: half a head's, each frequency's divisor
};

// The object "ressvd" of a compressed checkpoint's config.json.
struct compressed_info {
  std::string method;                        // as on the command line
  std::string format = "factored";           // or "dense"
  std::string form = "pair";                 // of the factored matrices; or "pivoted"
  double ratio = 0.0;                        // share of the layers' parameters removed
  std::map<std::string, std::int64_t> ranks; // canonical prefix of a factored matrix → rank
};

// What the forward pass needs to know of config.json.
struct model_config {
  model_family family = model_family::llama;
  std::string architecture; // "LlamaForCausalLM"
  std::int64_t hidden_size = 0;
  std::int64_t intermediate_size = 0; // OPT: ffn_dim
  std::int64_t layers = 0;
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0; // divides heads
  std::int64_t head_dim = 0; // heads·head_dim may differ from hidden_size
  std::int64_t vocab = 0;
  std::int64_t max_positions = 0; // OPT: the position table has two rows more
  double norm_eps = 0.0;
  rope_config rope;
  std::optional<rope_config> local_rope;      // of layers with a sliding window; absent: rope
  std::optional<std::int64_t> sliding_window; // absent: full attention
  std::vector<bool>
      full_attention;             // layers without the window; empty: all have it, if there is one
  double attention_scale = 0.0;   // of scores; 0: 1/√head_dim
  double attention_cap = 0.0;     // c of c·tanh(score/c); 0: none
  double logit_cap = 0.0;         // of logits
  double embedding_scale = 1.0;   // of embeddings on their way into the first layer
  bool norms_around_zero = false; // norms multiply by 1 + their weights
  bool post_norms = false;        // norms behind attention and MLP as well
  bool tied_embeddings = false;   // the head is the embedding
  bool qkv_bias = false;          // q, k and v projections carry a bias
  bool o_bias = false;            // so does the output projection
  bool mlp_bias = false;          // so do the matrices of the MLP
  bool qk_norm = false;           // RMS norm of every head of q and k before RoPE
  std::int64_t experts = 0;       // of a layer with a mixture of them in place of its MLP; 0: none
  std::int64_t experts_per_token = 0;
  std::int64_t expert_intermediate_size = 0;
  bool normalised_experts = false; // the weights of a token's experts add up to one
  std::vector<bool> plain_layers;  // layers with an MLP nevertheless; empty: none
  activation_kind activation = activation_kind::silu;
  bool byte_tokens = false; // "tokenizer": "bytes"
  std::optional<std::int32_t> bos;
  std::vector<std::int32_t> eos;
  std::optional<dtype> type; // torch_dtype or dtype, when given
  std::optional<compressed_info> compressed;
  std::filesystem::path file; // for messages
  std::string text;           // the file as it is; the equivalent config.json of a GGUF file

  bool is_mixture(std::int64_t layer) const {
    return experts > 0 && (plain_layers.empty() || !plain_layers[static_cast<std::size_t>(layer)]);
  }
};

// Reads directory/config.json, or what a GGUF file says in its place. Throws file_error that names
// the file and the key that is missing or malformed, or what is unsupported (architecture, kind of
// RoPE, mixed attention windows, OPT with post-norm or projected embeddings, …).
model_config read_config(const std::filesystem::path& model);

// The same for the text of a config.json; `file` is for messages.
model_config parse_config(const std::filesystem::path& file, std::string text);

std::string_view name_of(model_family family);

// The object as written into config.json; read_config reads it back.
nlohmann::ordered_json to_json(const compressed_info& info);

} // namespace ressvd_llm
