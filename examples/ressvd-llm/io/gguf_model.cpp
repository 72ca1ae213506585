// SPDX-License-Identifier: Apache-2.0
#include "io/gguf_model.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <utility>

#include <nlohmann/json.hpp>

#include "io/error.hpp"
#include "io/json_text.hpp"

namespace ressvd_llm {
namespace {

struct name_pair {
  std::string_view gguf;
  std::string_view checkpoint;
};

constexpr std::string_view mixtral_router = "block_sparse_moe.gate";

// Of a layer: what follows "blk.3." and "model.layers.3.", without ".weight" or ".bias".
constexpr std::array layer_names{
    name_pair{"attn_norm", "input_layernorm"},
    name_pair{"attn_q", "self_attn.q_proj"},
    name_pair{"attn_k", "self_attn.k_proj"},
    name_pair{"attn_v", "self_attn.v_proj"},
    name_pair{"attn_output", "self_attn.o_proj"},
    name_pair{"attn_q_norm", "self_attn.q_norm"},
    name_pair{"attn_k_norm", "self_attn.k_norm"},
    name_pair{"ffn_norm", "post_attention_layernorm"},
    name_pair{"ffn_gate", "mlp.gate_proj"},
    name_pair{"ffn_up", "mlp.up_proj"},
    name_pair{"ffn_down", "mlp.down_proj"},
    name_pair{"ffn_gate_inp", "mlp.gate"},
    name_pair{"ffn_gate_inp", mixtral_router},
    name_pair{"ffn_gate_exps", "mlp.experts.gate_proj"},
    name_pair{"ffn_up_exps", "mlp.experts.up_proj"},
    name_pair{"ffn_down_exps", "mlp.experts.down_proj"},
};

constexpr std::array outer_names{
    name_pair{"token_embd", "model.embed_tokens"},
    name_pair{"output_norm", "model.norm"},
    name_pair{"output", "lm_head"},
};

constexpr std::string_view gguf_layers = "blk.";
constexpr std::string_view checkpoint_layers = "model.layers.";

using name_member = std::string_view name_pair::*;

template <class Names>
std::string_view renamed(const Names& names, std::string_view stem, name_member from,
                         name_member to) {
  for (const name_pair& name : names) {
    if (name.*from == stem) return name.*to;
  }
  return {};
}

std::string renamed(std::string_view name, name_member from, name_member to,
                    std::string_view layers, std::string_view layers_to) {
  const std::size_t dot = name.rfind('.');
  if (dot == std::string_view::npos) return std::string(name);
  std::string_view stem = name.substr(0, dot);
  const std::string_view end = name.substr(dot);
  std::string start;
  if (stem.starts_with(layers)) {
    const std::size_t number_end = stem.find('.', layers.size());
    if (number_end == std::string_view::npos) return std::string(name);
    const std::string_view number = stem.substr(layers.size(), number_end - layers.size());
    start = std::string(layers_to) + std::string(number) + ".";
    stem = renamed(layer_names, stem.substr(number_end + 1), from, to);
  } else {
    stem = renamed(outer_names, stem, from, to);
  }
  return stem.empty() ? std::string(name) : start + std::string(stem) + std::string(end);
}

struct architecture_names {
  std::string_view gguf;
  std::string_view checkpoint;
  std::string_view model_type;
  model_family family;
};

constexpr std::array supported{
    architecture_names{"llama", "LlamaForCausalLM", "llama", model_family::llama},
    architecture_names{"qwen2", "Qwen2ForCausalLM", "qwen2", model_family::qwen2},
    architecture_names{"qwen3", "Qwen3ForCausalLM", "qwen3", model_family::qwen3},
    architecture_names{"qwen3moe", "Qwen3MoeForCausalLM", "qwen3_moe", model_family::qwen3_moe},
};

const stored_tensor* find_tensor(const gguf_content& content, std::string_view name) {
  const auto found = std::find_if(content.tensors.begin(), content.tensors.end(),
                                  [&](const stored_tensor& tensor) { return tensor.name == name; });
  return found == content.tensors.end() ? nullptr : &*found;
}

[[noreturn]] void unsupported(const gguf_metadata& metadata, const std::string& what) {
  throw file_error(metadata.file(), what + " is not supported");
}

class config_maker {
 public:
  explicit config_maker(const gguf_content& content)
      : content_(content), metadata_(content.metadata) {}

  nlohmann::ordered_json make() {
    require_whole_model();
    const std::string name =
        required(metadata_.text("general.architecture"), "general.architecture");
    const auto* const architecture =
        std::find_if(supported.begin(), supported.end(),
                     [&](const architecture_names& a) { return a.gguf == name; });
    if (architecture == supported.end()) {
      throw file_error(metadata_.file(),
                       "architecture '" + printable(name) +
                           "' is not supported (llama, qwen2, qwen3 and qwen3moe are)");
    }
    prefix_ = name + ".";
    json_["architectures"] = {architecture->checkpoint};
    json_["model_type"] = architecture->model_type;
    set_sizes();
    set_experts(architecture->family);
    set_attention(architecture->family);
    set_biases(architecture->family);
    set_rope();
    set_tokens();
    if (const auto compressed = metadata_.text(compressed_key))
      json_["ressvd"] = parse_json(metadata_.file(), *compressed);
    return std::move(json_);
  }

 private:
  template <class T>
  T required(std::optional<T> value, std::string_view key) const {
    if (!value) metadata_.fail(key, "is missing");
    return *std::move(value);
  }

  std::string key(std::string_view name) const { return prefix_ + std::string(name); }
  std::int64_t integer(std::string_view name) const {
    return required(metadata_.integer(key(name)), key(name));
  }
  std::int64_t integer(std::string_view name, std::int64_t otherwise) const {
    return metadata_.integer(key(name)).value_or(otherwise);
  }

  void require_whole_model() const {
    if (metadata_.text("general.type").value_or("model") != "model")
      unsupported(metadata_, "a file of type '" + printable(*metadata_.text("general.type")) + "'");
    const std::int64_t parts = metadata_.integer("split.count").value_or(1);
    if (parts > 1) {
      throw file_error(metadata_.file(), "is one of " + std::to_string(parts) +
                                             " parts of a model; join them first (llama.cpp's "
                                             "llama-gguf-split --merge)");
    }
  }

  // A feature that a number other than the usual one asks for.
  void refuse_unless(std::string_view name, double usual) const {
    const auto value = metadata_.number(key(name));
    if (value && *value != usual) unsupported(metadata_, "key '" + key(name) + "'");
  }

  void set_sizes() {
    json_["hidden_size"] = integer("embedding_length");
    json_["intermediate_size"] = integer("feed_forward_length");
    json_["num_hidden_layers"] = integer("block_count");
    json_["max_position_embeddings"] = integer("context_length");
    const stored_tensor* const embedding = find_tensor(content_, "token_embd.weight");
    if (embedding == nullptr) throw file_error(metadata_.file(), "token_embd.weight", "missing");
    if (embedding->shape.size() != 2) {
      throw file_error(metadata_.file(), embedding->name, "has no two dimensions");
    }
    json_["vocab_size"] = embedding->shape.front();
    json_["tie_word_embeddings"] = find_tensor(content_, "output.weight") == nullptr;
    json_["hidden_act"] = "silu";
    refuse_unless("logit_scale", 0);
    refuse_unless("embedding_scale", 0);
    refuse_unless("residual_scale", 0);
  }

  // llama.cpp takes the softmax of all experts, and makes the chosen ones' add up to one.
  void set_experts(model_family family) {
    const std::int64_t experts = integer("expert_count", 0);
    if (family == model_family::qwen3_moe) {
      json_["num_experts"] = integer("expert_count");
      json_["moe_intermediate_size"] = integer("expert_feed_forward_length");
      json_["norm_topk_prob"] = true;
    } else if (experts == 0) {
      return;
    } else if (family == model_family::llama) {
      json_["architectures"] = {"MixtralForCausalLM"};
      json_["model_type"] = "mixtral";
      json_["num_local_experts"] = experts;
    } else {
      unsupported(metadata_, "key '" + key("expert_count") + "'");
    }
    json_["num_experts_per_tok"] = integer("expert_used_count");
    refuse_unless("expert_shared_count", 0);
    refuse_unless("expert_weights_scale", 1);
    refuse_unless("expert_gating_func", 1);
    refuse_unless("expert_group_count", 0);
    refuse_unless("leading_dense_block_count", 0);
    refuse_unless("interleave_moe_layer_step", 1);
    if (!metadata_.flag(key("expert_weights_norm")).value_or(true))
      unsupported(metadata_, "key '" + key("expert_weights_norm") + "'");
  }

  void set_attention(model_family family) {
    const std::int64_t heads = integer("attention.head_count");
    if (heads < 1) metadata_.fail(key("attention.head_count"), "is below 1");
    json_["num_attention_heads"] = heads;
    json_["num_key_value_heads"] = integer("attention.head_count_kv", heads);
    const std::string_view eps = "attention.layer_norm_rms_epsilon";
    json_["rms_norm_eps"] = required(metadata_.number(key(eps)), key(eps));
    const std::int64_t hidden = integer("embedding_length");
    const std::int64_t usual = hidden / heads;
    head_dim_ = integer("attention.key_length", usual);
    if (integer("attention.value_length", usual) != head_dim_)
      unsupported(metadata_, "a head size of values that is not the keys'");
    json_["head_dim"] = head_dim_;
    refuse_unless("attention.scale", 0);
    refuse_unless("attention.clamp_kqv", 0);
    refuse_unless("attention.max_alibi_bias", 0);
    if (!metadata_.flag(key("attention.causal")).value_or(true))
      unsupported(metadata_, "attention that is not causal");
    const std::int64_t window = integer("attention.sliding_window", 0);
    if (window == 0) return;
    json_["sliding_window"] = window;
    if (json_.contains("num_local_experts")) return;
    if (family == model_family::llama) {
      json_["architectures"] = {"MistralForCausalLM"};
      json_["model_type"] = "mistral";
    } else {
      json_["use_sliding_window"] = true;
      json_["max_window_layers"] = 0;
    }
  }

  // A family has either biases on all of these or says nothing of them.
  void set_biases(model_family family) {
    if (family == model_family::qwen2) return;
    json_["attention_bias"] = find_tensor(content_, "blk.0.attn_q.bias") != nullptr;
    if (family == model_family::llama)
      json_["mlp_bias"] = find_tensor(content_, "blk.0.ffn_gate.bias") != nullptr;
  }

  void set_rope() {
    const std::int64_t rotated = integer("rope.dimension_count", head_dim_);
    if (rotated != head_dim_) {
      unsupported(metadata_, "a rotary embedding of " + std::to_string(rotated) + " of " +
                                 std::to_string(head_dim_) + " elements of a head");
    }
    nlohmann::ordered_json rope{
        {"rope_theta", metadata_.number(key("rope.freq_base")).value_or(10000.0)},
        {"rope_type", "default"}};
    const std::string kind = metadata_.text(key("rope.scaling.type")).value_or("");
    const double factor = metadata_.number(key("rope.scaling.factor"))
                              .value_or(metadata_.number(key("rope.scale_linear")).value_or(1.0));
    if (kind != "" && kind != "none" && kind != "linear")
      unsupported(metadata_, "rotary embedding of type '" + printable(kind) + "'");
    refuse_unless("rope.scaling.attn_factor", 1);
    const bool linear = kind != "none" && factor != 1.0 && factor != 0.0;
    if (linear) {
      rope["rope_type"] = "linear";
      rope["factor"] = factor;
    }
    if (const stored_tensor* const factors = find_tensor(content_, rope_factors_name)) {
      if (linear) unsupported(metadata_, "a linear scaling beside rope_freqs.weight");
      set_rope_factors(*factors, rope);
    }
    json_["rope_parameters"] = std::move(rope);
  }

  void set_rope_factors(const stored_tensor& tensor, nlohmann::ordered_json& rope) const {
    if (tensor.type != "F32" || tensor.shape != std::vector{head_dim_ / 2}) {
      throw file_error(metadata_.file(), tensor.name,
                       "is not the F32 factors of half a head's elements");
    }
    std::vector<float> factors(tensor.data.size() / sizeof(float));
    std::memcpy(factors.data(), tensor.data.data(), tensor.data.size());
    rope["rope_type"] = "longrope";
    rope["short_factor"] = factors;
    rope["long_factor"] = factors;
    rope["attention_factor"] = 1.0;
    rope["original_max_position_embeddings"] = json_["max_position_embeddings"];
  }

  void set_tokens() {
    for (const auto& [key, name] : {std::pair{"tokenizer.ggml.bos_token_id", "bos_token_id"},
                                    std::pair{"tokenizer.ggml.eos_token_id", "eos_token_id"}}) {
      if (const auto id = metadata_.integer(key)) json_[name] = *id;
    }
  }

  const gguf_content& content_;
  const gguf_metadata& metadata_;
  std::string prefix_;
  nlohmann::ordered_json json_;
  std::int64_t head_dim_ = 0;
};

// Phi-3 without its fused matrices is one, too.
bool is_llama_in_gguf(model_family family) {
  return family == model_family::llama || family == model_family::mistral ||
         family == model_family::phi3 || family == model_family::mixtral;
}

std::uint32_t as_u32(std::int64_t value) {
  return static_cast<std::uint32_t>(value); // config.json's numbers are below 2^31
}

} // namespace

std::string config_text_of(const gguf_content& content) {
  return config_maker(content).make().dump(2) + "\n";
}

std::string checkpoint_name(std::string_view gguf_name) {
  return renamed(gguf_name, &name_pair::gguf, &name_pair::checkpoint, gguf_layers,
                 checkpoint_layers);
}

std::string gguf_name(std::string_view checkpoint_name) {
  return renamed(checkpoint_name, &name_pair::checkpoint, &name_pair::gguf, checkpoint_layers,
                 gguf_layers);
}

std::string name_in(const model_config& config, std::string_view name) {
  constexpr std::string_view router = ".mlp.gate.weight";
  if (config.family != model_family::mixtral || !name.ends_with(router)) return std::string(name);
  return std::string(name.substr(0, name.size() - router.size() + 1)) +
         std::string(mixtral_router) + ".weight";
}

std::string expert_part(const model_config& config, std::string_view whole, std::int64_t expert) {
  constexpr std::string_view experts = ".mlp.experts.";
  const std::size_t at = whole.find(experts);
  if (at == std::string_view::npos) return {};
  const std::string layer(whole.substr(0, at));
  const std::string_view last = whole.substr(at + experts.size());
  const std::size_t dot = last.find('.');
  if (dot == std::string_view::npos) return {};
  const std::string number = std::to_string(expert) + ".";
  if (config.family != model_family::mixtral)
    return layer + std::string(experts) + number + std::string(last);
  const std::string name = last.starts_with("gate") ? "w1" : last.starts_with("up") ? "w3" : "w2";
  return layer + ".block_sparse_moe.experts." + number + name + std::string(last.substr(dot));
}

std::string stacked_gguf_name(std::int64_t layer, std::string_view projection) {
  return std::string(gguf_layers) + std::to_string(layer) + ".ffn_" + std::string(projection) +
         "_exps.weight";
}

std::int64_t interleaved_heads(const model_config& config, std::string_view checkpoint_name) {
  if (!is_llama_in_gguf(config.family)) return 0;
  const std::string_view module = checkpoint_name.substr(0, checkpoint_name.rfind('.'));
  const bool rotated =
      module.ends_with(".self_attn.q_proj") || module.ends_with(".self_attn.k_proj");
  return rotated ? config.head_dim : 0;
}

std::string_view gguf_architecture(const model_config& config) {
  const auto refuse = [&](const std::string& what) {
    throw usage_error(config.file.string() + ": GGUF has no architecture for " + what);
  };
  const model_family family = is_llama_in_gguf(config.family) ? model_family::llama : config.family;
  const auto* const found = std::find_if(supported.begin(), supported.end(),
                                         [&](const auto& a) { return a.family == family; });
  if (found == supported.end()) refuse("models of the family " + std::string(name_of(family)));
  if ((family == model_family::qwen3 || family == model_family::qwen3_moe) && config.qkv_bias)
    refuse("Qwen3 with biases");
  if (config.experts > 0 && !config.normalised_experts)
    refuse("experts whose weights do not add up to one (norm_topk_prob)");
  if (std::ranges::any_of(config.plain_layers, std::identity()))
    refuse("layers without experts among others (mlp_only_layers, decoder_sparse_step)");
  if (config.activation != activation_kind::silu) refuse("an activation other than SiLU");
  if (!config.full_attention.empty()) refuse("a mixture of full and sliding-window attention");
  return found->gguf;
}

gguf_pairs describe_for_gguf(const model_config& config) {
  const std::string_view architecture = gguf_architecture(config);
  const auto key = [&](std::string_view name) {
    return std::string(architecture) + "." + std::string(name);
  };
  gguf_pairs pairs;
  pairs.text("general.architecture", architecture);
  pairs.text("general.type", "model");
  pairs.u32(key("block_count"), as_u32(config.layers));
  pairs.u32(key("context_length"), as_u32(config.max_positions));
  pairs.u32(key("embedding_length"), as_u32(config.hidden_size));
  pairs.u32(key("feed_forward_length"), as_u32(config.intermediate_size));
  pairs.u32(key("vocab_size"), as_u32(config.vocab));
  if (config.experts > 0) {
    pairs.u32(key("expert_count"), as_u32(config.experts));
    pairs.u32(key("expert_used_count"), as_u32(config.experts_per_token));
  }
  if (config.family == model_family::qwen3_moe)
    pairs.u32(key("expert_feed_forward_length"), as_u32(config.expert_intermediate_size));
  pairs.u32(key("attention.head_count"), as_u32(config.heads));
  pairs.u32(key("attention.head_count_kv"), as_u32(config.kv_heads));
  pairs.u32(key("attention.key_length"), as_u32(config.head_dim));
  pairs.u32(key("attention.value_length"), as_u32(config.head_dim));
  pairs.f32(key("attention.layer_norm_rms_epsilon"), static_cast<float>(config.norm_eps));
  if (config.sliding_window)
    pairs.u32(key("attention.sliding_window"), as_u32(*config.sliding_window));
  pairs.u32(key("rope.dimension_count"), as_u32(config.head_dim));
  pairs.f32(key("rope.freq_base"), static_cast<float>(config.rope.theta));
  if (config.rope.scaling == rope_scaling::linear) {
    pairs.text(key("rope.scaling.type"), "linear");
    pairs.f32(key("rope.scaling.factor"), static_cast<float>(config.rope.factor));
  }
  if (config.bos) pairs.u32("tokenizer.ggml.bos_token_id", as_u32(*config.bos));
  if (!config.eos.empty()) pairs.u32("tokenizer.ggml.eos_token_id", as_u32(config.eos.front()));
  return pairs;
}

} // namespace ressvd_llm
