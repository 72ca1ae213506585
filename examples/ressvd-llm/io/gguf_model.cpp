// SPDX-License-Identifier: Apache-2.0
#include "io/gguf_model.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <functional>
#include <span>
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
    name_pair{"ffn_gate", "mlp.gate_proj"},
    name_pair{"ffn_up", "mlp.up_proj"},
    name_pair{"ffn_down", "mlp.down_proj"},
    name_pair{"ffn_gate_inp", "mlp.gate"},
    name_pair{"ffn_gate_inp", mixtral_router},
    name_pair{"ffn_gate_exps", "mlp.experts.gate_proj"},
    name_pair{"ffn_up_exps", "mlp.experts.up_proj"},
    name_pair{"ffn_down_exps", "mlp.experts.down_proj"},
};

// The same, of some families only; these go first.
constexpr std::array names_without_post_norms{
    name_pair{"ffn_norm", "post_attention_layernorm"},
};
constexpr std::array names_with_post_norms{
    name_pair{"post_attention_norm", "post_attention_layernorm"},
    name_pair{"ffn_norm", "pre_feedforward_layernorm"},
    name_pair{"post_ffw_norm", "post_feedforward_layernorm"},
};
constexpr std::array names_of_phi3{
    name_pair{"attn_qkv", "self_attn.qkv_proj"},
    name_pair{"ffn_up", "mlp.gate_up_proj"},
    name_pair{"ffn_norm", "post_attention_layernorm"},
};

constexpr std::array outer_names{
    name_pair{"token_embd", "model.embed_tokens"},
    name_pair{"output_norm", "model.norm"},
    name_pair{"output", "lm_head"},
};

constexpr std::string_view gguf_layers = "blk.";
constexpr std::string_view checkpoint_layers = "model.layers.";

using name_member = std::string_view name_pair::*;

bool is_gemma(model_family family) {
  return family == model_family::gemma2 || family == model_family::gemma3;
}

std::string_view renamed(std::span<const name_pair> names, std::string_view stem, name_member from,
                         name_member to) {
  for (const name_pair& name : names) {
    if (name.*from == stem) return name.*to;
  }
  return {};
}

std::string renamed(std::span<const name_pair> of_family, std::string_view name, name_member from,
                    name_member to, std::string_view layers, std::string_view layers_to) {
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
    const std::string_view module = stem.substr(number_end + 1);
    stem = renamed(of_family, module, from, to);
    if (stem.empty()) stem = renamed(layer_names, module, from, to);
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
    architecture_names{"gemma2", "Gemma2ForCausalLM", "gemma2", model_family::gemma2},
    architecture_names{"gemma3", "Gemma3ForCausalLM", "gemma3_text", model_family::gemma3},
    architecture_names{"phi3", "Phi3ForCausalLM", "phi3", model_family::phi3},
};

// More would be a list of layers longer than any file describes.
constexpr std::int64_t largest_layers = 65'536;

// Of Gemma 3's windowed layers, where a file does not say.
constexpr double local_rope_base = 10'000.0;

// What llama.cpp, whose files do not say, takes for Gemma: scores are divided by the root of this.
std::int64_t gemma_score_size(model_family family, std::int64_t layers, std::int64_t hidden,
                              std::int64_t heads, std::int64_t head_dim) {
  const std::int64_t layers_of_largest = family == model_family::gemma2 ? 46 : 62;
  return layers == layers_of_largest ? hidden / heads : head_dim;
}

// Every so many-th layer of Gemma has full attention where a file does not say which.
std::int64_t gemma_pattern(model_family family) {
  return family == model_family::gemma2 ? 2 : 6;
}

std::vector<bool> windowed_layers(std::int64_t layers, std::int64_t pattern) {
  std::vector<bool> windowed;
  for (std::int64_t i = 0; i < layers; ++i)
    windowed.push_back(pattern == 0 || (i + 1) % pattern != 0);
  return windowed;
}

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
      throw file_error(metadata_.file(), "architecture '" + printable(name) +
                                             "' is not supported (llama, qwen2, qwen3, qwen3moe, "
                                             "gemma2, gemma3 and phi3 are)");
    }
    prefix_ = name + ".";
    json_["architectures"] = {architecture->checkpoint};
    json_["model_type"] = architecture->model_type;
    family_ = architecture->family;
    set_sizes();
    set_experts();
    set_attention();
    if (is_gemma(family_)) set_gemma();
    set_window();
    set_biases();
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
    if (!is_gemma(family_)) json_["hidden_act"] = "silu";
    refuse_unless("logit_scale", 0);
    refuse_unless("embedding_scale", 0);
    refuse_unless("residual_scale", 0);
  }

  // llama.cpp takes the softmax of all experts, and makes the chosen ones' add up to one.
  void set_experts() {
    const std::int64_t experts = integer("expert_count", 0);
    if (family_ == model_family::qwen3_moe) {
      json_["num_experts"] = integer("expert_count");
      json_["moe_intermediate_size"] = integer("expert_feed_forward_length");
      json_["norm_topk_prob"] = true;
    } else if (experts == 0) {
      return;
    } else if (family_ == model_family::llama) {
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

  void set_attention() {
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
  }

  // llama.cpp has no score scale of its own for them, and soft caps where the file has none.
  void set_gemma() {
    json_["hidden_activation"] = "gelu_pytorch_tanh";
    json_["query_pre_attn_scalar"] =
        gemma_score_size(family_, integer("block_count"), integer("embedding_length"),
                         integer("attention.head_count"), head_dim_);
    const bool second = family_ == model_family::gemma2;
    json_["attn_logit_softcapping"] = nullptr;
    json_["final_logit_softcapping"] = nullptr;
    if (second) {
      json_["attn_logit_softcapping"] =
          metadata_.number(key("attn_logit_softcapping")).value_or(50.0);
    } else {
      refuse_unless("attn_logit_softcapping", 0);
    }
    const double cap =
        metadata_.number(key("final_logit_softcapping")).value_or(second ? 30.0 : 0.0);
    if (second || cap != 0) json_["final_logit_softcapping"] = cap;
  }

  void set_window() {
    const bool gemma2 = family_ == model_family::gemma2;
    const std::int64_t window = integer("attention.sliding_window", gemma2 ? 4096 : 0);
    if (window == 0) {
      if (is_gemma(family_)) json_["sliding_window"] = nullptr; // absent it would be 4096
      return;
    }
    json_["sliding_window"] = window;
    if (json_.contains("num_local_experts")) return;
    if (is_gemma(family_)) {
      json_["layer_types"] = nlohmann::ordered_json::array();
      for (const bool windowed : windowed_in_file())
        json_["layer_types"].push_back(windowed ? "sliding_attention" : "full_attention");
    } else if (family_ == model_family::llama) {
      json_["architectures"] = {"MistralForCausalLM"};
      json_["model_type"] = "mistral";
    } else if (family_ != model_family::phi3) {
      json_["use_sliding_window"] = true;
      json_["max_window_layers"] = 0;
    }
  }

  // A number, or a list of all layers.
  std::vector<bool> windowed_in_file() const {
    const std::string pattern = key("attention.sliding_window_pattern");
    const std::int64_t layers = integer("block_count");
    const gguf_value* const value = metadata_.find(pattern);
    if (value == nullptr || !value->is_array) {
      const std::int64_t every = metadata_.integer(pattern).value_or(gemma_pattern(family_));
      if (every < 0) metadata_.fail(pattern, "is negative");
      if (layers > largest_layers) metadata_.fail(key("block_count"), "is too large");
      return windowed_layers(layers, every);
    }
    std::vector<bool> windowed = *metadata_.flags(pattern);
    if (std::cmp_not_equal(windowed.size(), layers))
      metadata_.fail(pattern, "does not list as many layers as there are");
    return windowed;
  }

  // A family has either biases on all of these or says nothing of them.
  void set_biases() {
    if (family_ == model_family::qwen2 || family_ == model_family::phi3) return;
    json_["attention_bias"] = find_tensor(content_, "blk.0.attn_q.bias") != nullptr;
    if (family_ == model_family::llama)
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
    for (const char* const name : {"rope_factors_long.weight", "rope_factors_short.weight"}) {
      if (find_tensor(content_, name) != nullptr)
        unsupported(metadata_, "a rotary embedding of type 'longrope' (" + std::string(name) + ")");
    }
    if (is_gemma(family_)) return set_gemma_rope(std::move(rope));
    if (const stored_tensor* const factors = find_tensor(content_, rope_factors_name)) {
      if (linear) unsupported(metadata_, "a linear scaling beside rope_freqs.weight");
      set_rope_factors(*factors, rope);
    }
    json_["rope_parameters"] = std::move(rope);
  }

  // Gemma 3 turns by another embedding within windows.
  void set_gemma_rope(nlohmann::ordered_json rope) {
    if (find_tensor(content_, rope_factors_name) != nullptr)
      unsupported(metadata_, "rope_freqs.weight in this architecture");
    const auto local = metadata_.number(key("rope.freq_base_swa"));
    if (family_ == model_family::gemma2) {
      if (local && *local != rope["rope_theta"].get<double>())
        unsupported(metadata_, "key '" + key("rope.freq_base_swa") + "'");
      json_["rope_parameters"] = std::move(rope);
      return;
    }
    json_["rope_parameters"] = {
        {"full_attention", std::move(rope)},
        {"sliding_attention",
         {{"rope_theta", local.value_or(local_rope_base)}, {"rope_type", "default"}}}};
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
  model_family family_ = model_family::llama;
  std::int64_t head_dim_ = 0;
};

// Of the tensors that are written, which are fused nowhere.
std::span<const name_pair> names_written(model_family family) {
  if (is_gemma(family)) return names_with_post_norms;
  return names_without_post_norms;
}

// Phi-3 without its fused matrices is one, too.
bool is_llama_in_gguf(model_family family) {
  return family == model_family::llama || family == model_family::mistral ||
         family == model_family::phi3 || family == model_family::mixtral;
}

// What llama.cpp computes whatever a file says.
void require_usual_gemma(const model_config& config,
                         const std::function<void(const std::string&)>& refuse) {
  const bool second = config.family == model_family::gemma2;
  const std::int64_t size = gemma_score_size(config.family, config.layers, config.hidden_size,
                                             config.heads, config.head_dim);
  if (config.attention_scale != 1.0 / std::sqrt(static_cast<double>(size)))
    refuse("Gemma whose query_pre_attn_scalar is not " + std::to_string(size));
  if (config.activation != activation_kind::gelu_tanh)
    refuse("Gemma with an activation other than gelu_pytorch_tanh");
  if (config.qkv_bias || config.o_bias) refuse("Gemma with biases");
  if (config.rope.scaling != rope_scaling::none && config.rope.scaling != rope_scaling::linear)
    refuse("Gemma with a rotary embedding other than default and linear");
  if (config.local_rope && config.local_rope->scaling != rope_scaling::none)
    refuse("Gemma with a scaled rotary embedding within windows");
  if (second && !config.tied_embeddings) refuse("Gemma 2 with a head of its own");
  if (second && (config.attention_cap == 0 || config.logit_cap == 0))
    refuse("Gemma 2 without soft caps");
  if (!second && config.attention_cap != 0) refuse("Gemma 3 with a soft cap of scores");
}

std::uint32_t as_u32(std::int64_t value) {
  return static_cast<std::uint32_t>(value); // config.json's numbers are below 2^31
}

} // namespace

std::string config_text_of(const gguf_content& content) {
  return config_maker(content).make().dump(2) + "\n";
}

std::string checkpoint_name(model_family family, std::string_view gguf_name) {
  const std::span<const name_pair> names =
      family == model_family::phi3 ? names_of_phi3 : names_written(family);
  return renamed(names, gguf_name, &name_pair::gguf, &name_pair::checkpoint, gguf_layers,
                 checkpoint_layers);
}

std::string gguf_name(model_family family, std::string_view checkpoint_name) {
  return renamed(names_written(family), checkpoint_name, &name_pair::checkpoint, &name_pair::gguf,
                 checkpoint_layers, gguf_layers);
}

float added_in_gguf(const model_config& config, std::string_view checkpoint_name) {
  return config.norms_around_zero && checkpoint_name.ends_with("norm.weight") ? 1.0f : 0.0f;
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
  if (is_gemma(family)) {
    require_usual_gemma(config, refuse);
    return found->gguf;
  }
  if (config.activation != activation_kind::silu) refuse("an activation other than SiLU");
  if (!config.full_attention.empty()) refuse("a mixture of full and sliding-window attention");
  return found->gguf;
}

namespace {

using key_function = std::function<std::string(std::string_view)>;

void describe_gemma(const model_config& config, const key_function& key, gguf_pairs& pairs) {
  const bool second = config.family == model_family::gemma2;
  if (second) {
    pairs.f32(key("attn_logit_softcapping"), static_cast<float>(config.attention_cap));
  } else if (config.local_rope->theta != local_rope_base) {
    pairs.f32(key("rope.freq_base_swa"), static_cast<float>(config.local_rope->theta));
  }
  if (config.logit_cap != 0)
    pairs.f32(key("final_logit_softcapping"), static_cast<float>(config.logit_cap));
  std::vector<bool> windowed(static_cast<std::size_t>(config.layers),
                             config.sliding_window.has_value());
  for (std::size_t i = 0; i < config.full_attention.size(); ++i)
    windowed[i] = !config.full_attention[i];
  // Gemma 2 has a window unless every layer says otherwise.
  const bool unsaid = windowed == windowed_layers(config.layers, gemma_pattern(config.family));
  if (!unsaid && (second || config.sliding_window))
    pairs.flags(key("attention.sliding_window_pattern"), windowed);
}

} // namespace

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
  if (is_gemma(config.family)) describe_gemma(config, key, pairs);
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
