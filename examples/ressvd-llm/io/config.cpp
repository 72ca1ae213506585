// SPDX-License-Identifier: Apache-2.0
#include "io/config.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <utility>

#include "io/error.hpp"
#include "io/gguf_model.hpp"
#include "io/json_text.hpp"
#include "io/mapped_file.hpp"
#include "io/paths.hpp"

namespace ressvd_llm {
namespace {

constexpr std::uint64_t largest_config = 4'194'304;
constexpr std::int64_t largest_extent = std::numeric_limits<std::int32_t>::max();
// Far beyond any model: a layer's matrices are listed before the files are asked for them.
constexpr std::int64_t most_experts = 4096;

struct architecture {
  std::string_view name;
  model_family family;
};

constexpr std::array architectures{
    architecture{"LlamaForCausalLM", model_family::llama},
    architecture{"MistralForCausalLM", model_family::mistral},
    architecture{"OPTForCausalLM", model_family::opt},
    architecture{"Qwen2ForCausalLM", model_family::qwen2},
    architecture{"Qwen3ForCausalLM", model_family::qwen3},
    architecture{"Gemma2ForCausalLM", model_family::gemma2},
    architecture{"Gemma3ForCausalLM", model_family::gemma3},
    architecture{"Phi3ForCausalLM", model_family::phi3},
    architecture{"MixtralForCausalLM", model_family::mixtral},
    architecture{"Qwen3MoeForCausalLM", model_family::qwen3_moe},
};

// One JSON object of the file with checked access. A key with the value null counts as absent.
class json_object {
 public:
  json_object(const std::filesystem::path& file, const nlohmann::json& object, std::string prefix)
      : file_(file), object_(object), prefix_(std::move(prefix)) {
    if (!object_.is_object()) {
      throw file_error(file_, prefix_.empty() ? std::string("is not a JSON object")
                                              : "'" + prefix_ + "' is not an object");
    }
  }

  bool has(const char* key) const { return object_.contains(key) && !object_[key].is_null(); }

  std::int64_t integer(const char* key) const {
    const nlohmann::json& value = required(key);
    if (!value.is_number_integer()) fail(key, "is not an integer");
    if (value.is_number_unsigned() && value.get<std::uint64_t>() > largest_unsigned) {
      fail(key, "is too large");
    }
    return value.get<std::int64_t>();
  }
  std::int64_t integer(const char* key, std::int64_t otherwise) const {
    return has(key) ? integer(key) : otherwise;
  }

  // An integer in [1, 2^31): sizes within it multiply in pairs without overflow.
  std::int64_t extent(const char* key) const {
    const std::int64_t value = integer(key);
    if (value < 1 || value > largest_extent) {
      fail(key, "is " + std::to_string(value) + ", outside [1, 2^31)");
    }
    return value;
  }
  std::int64_t extent(const char* key, std::int64_t otherwise) const {
    return has(key) ? extent(key) : otherwise;
  }

  // An integer of at least 0.
  std::int64_t count(const char* key, std::int64_t otherwise) const {
    const std::int64_t value = integer(key, otherwise);
    if (value < 0) fail(key, "is negative");
    return value;
  }

  double positive(const char* key) const {
    const nlohmann::json& value = required(key);
    if (!value.is_number()) fail(key, "is not a number");
    const auto number = value.get<double>();
    if (!std::isfinite(number) || number <= 0) fail(key, "is not a positive number");
    return number;
  }
  double positive(const char* key, double otherwise) const {
    return has(key) ? positive(key) : otherwise;
  }

  bool flag(const char* key, bool otherwise) const {
    if (!has(key)) return otherwise;
    if (!object_[key].is_boolean()) fail(key, "is neither true nor false");
    return object_[key].get<bool>();
  }

  std::string text(const char* key) const {
    const nlohmann::json& value = required(key);
    if (!value.is_string()) fail(key, "is not a text");
    return value.get<std::string>();
  }
  std::string text(const char* key, const std::string& otherwise) const {
    return has(key) ? text(key) : otherwise;
  }

  json_object object(const char* key) const { return {file_, required(key), dotted(key)}; }

  const nlohmann::json& required(const char* key) const {
    if (!has(key)) fail(key, "is missing");
    return object_[key];
  }

  [[noreturn]] void fail(const char* key, const std::string& what) const {
    throw file_error(file_, "key '" + dotted(printable(key)) + "' " + what);
  }

  [[noreturn]] void unsupported(const std::string& what, const std::string& note = "") const {
    throw file_error(file_, what + " is not supported" + note);
  }

 private:
  static constexpr std::uint64_t largest_unsigned = std::numeric_limits<std::int64_t>::max();

  std::string dotted(const std::string& key) const {
    return prefix_.empty() ? key : prefix_ + "." + key;
  }

  const std::filesystem::path& file_;
  const nlohmann::json& object_;
  std::string prefix_;
};

void read_architecture(const json_object& json, model_config& config) {
  const nlohmann::json& names = json.required("architectures");
  if (!names.is_array() || names.size() != 1 || !names[0].is_string()) {
    json.fail("architectures", "is not a list of one name");
  }
  config.architecture = names[0].get<std::string>();
  for (const architecture& known : architectures) {
    if (known.name == config.architecture) {
      config.family = known.family;
      return;
    }
  }
  std::string supported;
  for (const architecture& known : architectures) {
    supported += (supported.empty() ? "" : ", ") + std::string(known.name);
  }
  json.unsupported("architecture '" + printable(config.architecture) + "'",
                   " (" + supported + " are)");
}

activation_kind read_activation(const json_object& json, const char* key, const char* otherwise) {
  const std::string name = json.text(key, otherwise);
  if (name == "silu" || name == "swish") return activation_kind::silu;
  if (name == "relu") return activation_kind::relu;
  if (name == "gelu") return activation_kind::gelu;
  // cppcheck-suppress missingReturn // unsupported() does not return
  if (name == "gelu_new" || name == "gelu_pytorch_tanh") return activation_kind::gelu_tanh;
  json.unsupported("activation '" + printable(name) + "'");
}

// The factors in GGUF files. longrope in general has others for long texts and scales the
// attention.
void read_rope_factors(const json_object& scaling, rope_config& rope) {
  const nlohmann::json& factors = scaling.required("short_factor");
  if (scaling.required("long_factor") != factors || !scaling.has("attention_factor") ||
      scaling.positive("attention_factor") != 1.0) {
    scaling.unsupported("longrope with other factors for long texts or an attention factor");
  }
  if (!factors.is_array()) scaling.fail("short_factor", "is not a list of numbers");
  for (const nlohmann::json& factor : factors) {
    const double value = factor.is_number() ? factor.get<double>() : 0.0;
    if (!std::isfinite(value) || value <= 0) {
      scaling.fail("short_factor", "is not a list of positive numbers");
    }
    rope.factors.push_back(value);
  }
  rope.scaling = rope_scaling::factors;
}

// `key` is the object that describes the embedding, where there is one.
rope_config read_rope(const json_object& json, const char* key, double theta) {
  rope_config rope;
  rope.theta = theta;
  if (!json.has(key)) return rope;

  const json_object scaling = json.object(key);
  rope.theta = scaling.positive("rope_theta", rope.theta);
  if (scaling.positive("partial_rotary_factor", 1.0) != 1.0) {
    json.unsupported("a partial rotary embedding");
  }
  const std::string kind = scaling.has("rope_type") ? scaling.text("rope_type")
                           : scaling.has("type")    ? scaling.text("type")
                                                    : "";
  if (kind == "default") return rope;
  if (kind == "linear") {
    rope.scaling = rope_scaling::linear;
    rope.factor = scaling.positive("factor");
  } else if (kind == "llama3") {
    rope.scaling = rope_scaling::llama3;
    rope.factor = scaling.positive("factor");
    rope.low_freq_factor = scaling.positive("low_freq_factor");
    rope.high_freq_factor = scaling.positive("high_freq_factor");
    rope.original_max_positions = scaling.extent("original_max_position_embeddings");
    if (rope.high_freq_factor <= rope.low_freq_factor) {
      scaling.fail("high_freq_factor", "is not above low_freq_factor");
    }
  } else if (kind == "longrope") {
    read_rope_factors(scaling, rope);
  } else if (kind.empty()) {
    scaling.fail("rope_type", "is missing");
  } else {
    json.unsupported("rotary embedding of type '" + printable(kind) + "'");
  }
  return rope;
}

rope_config read_rope(const json_object& json, double theta = 10000.0) {
  if (json.positive("partial_rotary_factor", 1.0) != 1.0) {
    json.unsupported("a partial rotary embedding");
  }
  return read_rope(json, json.has("rope_parameters") ? "rope_parameters" : "rope_scaling",
                   json.positive("rope_theta", theta));
}

// Which layers attend within a window only: the list of layer types where there is one, otherwise
// each family's own keys and defaults.
std::vector<bool> read_windowed_layers(const json_object& json, const model_config& config) {
  std::vector<bool> windowed(static_cast<std::size_t>(config.layers), false);
  if (config.family == model_family::llama || config.family == model_family::opt) return windowed;
  if (json.has("layer_types")) {
    const nlohmann::json& types = json.required("layer_types");
    if (!types.is_array() || types.size() != windowed.size()) {
      json.fail("layer_types", "is not a list of num_hidden_layers names");
    }
    for (std::size_t i = 0; i < windowed.size(); ++i) {
      windowed[i] = types[i] == "sliding_attention";
      if (!windowed[i] && types[i] != "full_attention") {
        json.unsupported("a layer type other than full and sliding attention");
      }
    }
    return windowed;
  }
  std::int64_t full = 0;    // layers before the first that can be windowed
  std::int64_t pattern = 0; // every so many-th one is full, too
  if (config.family == model_family::gemma2) {
    pattern = 2;
  } else if (config.family == model_family::gemma3) {
    pattern = json.extent("sliding_window_pattern", 6);
  } else if (config.family == model_family::phi3 || config.family == model_family::mixtral) {
    full = json.has("sliding_window") ? 0 : config.layers;
  } else if (config.family == model_family::qwen3_moe) {
    full = json.flag("use_sliding_window", false) ? 0 : config.layers;
  } else if (config.family != model_family::mistral) {
    full = json.flag("use_sliding_window", false) ? json.count("max_window_layers", 28)
                                                  : config.layers;
  }
  for (std::int64_t i = full; i < config.layers; ++i)
    windowed[static_cast<std::size_t>(i)] = pattern == 0 || (i + 1) % pattern != 0;
  return windowed;
}

void read_sliding_window(const json_object& json, const nlohmann::json& raw, model_config& config) {
  std::vector<bool> windowed = read_windowed_layers(json, config);
  const bool disabled = raw.contains("sliding_window") && raw["sliding_window"].is_null();
  if (disabled || std::ranges::none_of(windowed, std::identity())) return;
  config.sliding_window = json.extent("sliding_window", 4096);
  if (std::ranges::all_of(windowed, std::identity())) return;
  windowed.flip();
  config.full_attention = std::move(windowed);
}

// A soft cap of so much, unless the file has another or none.
double read_cap(const json_object& json, const nlohmann::json& raw, const char* key,
                double otherwise) {
  return raw.contains(key) && raw[key].is_null() ? 0.0 : json.positive(key, otherwise);
}

void read_gemma(const json_object& json, const nlohmann::json& raw, model_config& config) {
  const bool second = config.family == model_family::gemma2;
  config.intermediate_size = json.extent("intermediate_size");
  config.kv_heads = json.extent("num_key_value_heads");
  config.norm_eps = json.positive("rms_norm_eps", 1e-6);
  config.activation = read_activation(json, "hidden_activation", "gelu_pytorch_tanh");
  config.tied_embeddings = json.flag("tie_word_embeddings", true);
  config.qkv_bias = config.o_bias = json.flag("attention_bias", false);
  config.qk_norm = !second;
  config.attention_scale = 1.0 / std::sqrt(json.positive("query_pre_attn_scalar", 256.0));
  config.attention_cap = second ? read_cap(json, raw, "attn_logit_softcapping", 50.0)
                                : json.positive("attn_logit_softcapping", 0.0);
  config.logit_cap = second ? read_cap(json, raw, "final_logit_softcapping", 30.0)
                            : json.positive("final_logit_softcapping", 0.0);
  config.embedding_scale = std::sqrt(static_cast<double>(config.hidden_size));
  config.norms_around_zero = true;
  config.post_norms = true;
  if (json.flag("use_bidirectional_attention", false)) json.unsupported("bidirectional attention");
  if (second) {
    config.rope = read_rope(json);
    return;
  }
  if (json.has("rope_parameters")) {
    const json_object ropes = json.object("rope_parameters");
    config.rope = read_rope(ropes, "full_attention", 1'000'000.0);
    config.local_rope = read_rope(ropes, "sliding_attention", 10'000.0);
  } else {
    config.rope = read_rope(json, "rope_scaling", json.positive("rope_theta", 1'000'000.0));
    config.local_rope = rope_config{};
    config.local_rope->theta = json.positive("rope_local_base_freq", 10'000.0);
  }
}

void read_opt(const json_object& json, model_config& config) {
  if (!json.flag("do_layer_norm_before", true)) json.unsupported("OPT with post-norm");
  if (json.extent("word_embed_proj_dim", config.hidden_size) != config.hidden_size) {
    json.unsupported("OPT with projected embeddings (word_embed_proj_dim)");
  }
  if (json.flag("_remove_final_layer_norm", false)) json.unsupported("OPT without final norm");
  if (!json.flag("layer_norm_elementwise_affine", true)) {
    json.unsupported("OPT with layer norms without weights");
  }
  config.intermediate_size = json.extent("ffn_dim");
  config.kv_heads = config.heads;
  config.norm_eps = 1e-5;
  config.activation = read_activation(json, "activation_function", "relu");
  config.tied_embeddings = json.flag("tie_word_embeddings", true);
  config.qkv_bias = config.o_bias = config.mlp_bias = json.flag("enable_bias", true);
}

std::int64_t read_expert_count(const json_object& json) {
  const char* const key = json.has("num_local_experts") ? "num_local_experts" : "num_experts";
  const std::int64_t experts = json.extent(key);
  if (experts > most_experts) {
    json.fail(key, "is " + std::to_string(experts) + ", above " + std::to_string(most_experts));
  }
  return experts;
}

// Layers that mlp_only_layers names or decoder_sparse_step passes over.
std::vector<bool> read_plain_layers(const json_object& json, std::int64_t layers) {
  std::vector<bool> plain(static_cast<std::size_t>(layers), false);
  const std::int64_t step = json.extent("decoder_sparse_step", 1);
  for (std::int64_t layer = 0; layer < layers; ++layer)
    plain[static_cast<std::size_t>(layer)] = (layer + 1) % step != 0;
  if (!json.has("mlp_only_layers")) return plain;
  const nlohmann::json& listed = json.required("mlp_only_layers");
  if (!listed.is_array()) json.fail("mlp_only_layers", "is not a list of layers");
  for (const nlohmann::json& item : listed) {
    if (!item.is_number_integer()) json.fail("mlp_only_layers", "is not a list of layers");
    const auto layer = item.get<std::int64_t>();
    if (layer < 0 || layer >= layers) {
      json.fail("mlp_only_layers", "has " + std::to_string(layer) + ", outside the " +
                                       std::to_string(layers) + " layers");
    }
    plain[static_cast<std::size_t>(layer)] = true;
  }
  return plain;
}

void read_experts(const json_object& json, model_config& config) {
  const bool mixtral = config.family == model_family::mixtral;
  config.experts = read_expert_count(json);
  config.experts_per_token = json.extent("num_experts_per_tok");
  if (config.experts_per_token > config.experts) {
    json.fail("num_experts_per_tok", "(" + std::to_string(config.experts_per_token) +
                                         ") is above the number of experts (" +
                                         std::to_string(config.experts) + ")");
  }
  config.expert_intermediate_size =
      mixtral ? config.intermediate_size : json.extent("moe_intermediate_size");
  config.normalised_experts = mixtral || json.flag("norm_topk_prob", false);
  if (!mixtral) config.plain_layers = read_plain_layers(json, config.layers);
}

void read_llama_like(const json_object& json, model_config& config) {
  config.intermediate_size = json.extent("intermediate_size");
  config.kv_heads = config.family == model_family::llama || config.family == model_family::phi3
                        ? json.extent("num_key_value_heads", config.heads)
                        : json.extent("num_key_value_heads");
  config.norm_eps = json.positive("rms_norm_eps");
  config.activation = read_activation(json, "hidden_act", "silu");
  config.tied_embeddings = json.flag("tie_word_embeddings", false);
  config.rope = read_rope(json, config.family == model_family::mixtral ? 1'000'000.0 : 10'000.0);
  switch (config.family) {
    case model_family::llama:
      config.qkv_bias = config.o_bias = json.flag("attention_bias", false);
      config.mlp_bias = json.flag("mlp_bias", false);
      break;
    case model_family::qwen2:
      config.qkv_bias = true;
      break;
    case model_family::qwen3_moe:
      read_experts(json, config);
      [[fallthrough]];
    case model_family::qwen3:
      config.qkv_bias = config.o_bias = json.flag("attention_bias", false);
      config.qk_norm = true;
      break;
    case model_family::mixtral:
      read_experts(json, config);
      break;
    case model_family::mistral:
    default:
      break;
  }
}

void read_heads(const json_object& json, model_config& config) {
  if (config.family == model_family::gemma2 || config.family == model_family::gemma3) {
    config.head_dim = json.extent("head_dim", 256);
  } else if (config.family == model_family::qwen3 ||
             (config.family != model_family::opt && json.has("head_dim"))) {
    config.head_dim = json.extent("head_dim");
  } else if (config.hidden_size % config.heads == 0) {
    config.head_dim = config.hidden_size / config.heads;
  } else {
    json.fail("hidden_size", "(" + std::to_string(config.hidden_size) +
                                 ") is not a multiple of num_attention_heads (" +
                                 std::to_string(config.heads) + ")");
  }
  if (config.heads % config.kv_heads != 0) {
    json.fail("num_attention_heads", "(" + std::to_string(config.heads) +
                                         ") is not a multiple of num_key_value_heads (" +
                                         std::to_string(config.kv_heads) + ")");
  }
  if (config.heads * config.head_dim > largest_extent) {
    json.fail("num_attention_heads", "(" + std::to_string(config.heads) + ") of size " +
                                         std::to_string(config.head_dim) +
                                         " are beyond the limit of 2^31");
  }
  if (config.family != model_family::opt && config.head_dim % 2 != 0) {
    json.unsupported("an odd head size (" + std::to_string(config.head_dim) + ")");
  }
}

void read_special_tokens(const json_object& json, model_config& config) {
  const auto id = [&](const char* key, const nlohmann::json& value) {
    if (!value.is_number_integer()) json.fail(key, "is not a token id");
    const auto number = value.get<std::int64_t>();
    if (number < 0 || number >= config.vocab) {
      json.fail(key, "(" + std::to_string(number) + ") is outside the vocabulary of " +
                         std::to_string(config.vocab));
    }
    return static_cast<std::int32_t>(number);
  };
  if (json.has("bos_token_id")) config.bos = id("bos_token_id", json.required("bos_token_id"));
  if (json.has("eos_token_id")) {
    const nlohmann::json& eos = json.required("eos_token_id");
    if (!eos.is_array()) {
      config.eos = {id("eos_token_id", eos)};
    } else {
      for (const nlohmann::json& value : eos)
        config.eos.push_back(id("eos_token_id", value));
    }
  }
}

void read_dtype(const json_object& json, model_config& config) {
  const char* const key = json.has("dtype") ? "dtype" : "torch_dtype";
  if (!json.has(key)) return;
  config.type = parse_dtype(json.text(key));
  if (!config.type || *config.type == dtype::f64 || *config.type == dtype::i32 ||
      is_quantised(*config.type)) {
    json.unsupported("element type '" + printable(json.text(key)) + "'");
  }
}

compressed_info read_compressed(const json_object& json) {
  compressed_info info;
  const std::int64_t version = json.extent("version");
  if (version > 2) {
    json.unsupported("version " + std::to_string(version) + " of compressed checkpoints");
  }
  if (version == 2) info.form = json.text("form");
  if (info.form != "pair" && info.form != "pivoted") {
    json.unsupported("form '" + printable(info.form) + "' of compressed matrices");
  }
  info.method = json.text("method");
  info.format = json.text("format", info.format);
  const nlohmann::json& ratio = json.required("ratio");
  if (!ratio.is_number()) json.fail("ratio", "is not a number");
  info.ratio = ratio.get<double>();
  if (!json.has("ranks")) return info;
  const json_object ranks = json.object("ranks");
  for (const auto& [name, rank] : json.required("ranks").items()) {
    info.ranks.emplace(name, ranks.extent(name.c_str()));
  }
  return info;
}

} // namespace

std::string_view name_of(model_family family) {
  switch (family) {
    case model_family::llama:
      return "llama";
    case model_family::mistral:
      return "mistral";
    case model_family::opt:
      return "opt";
    case model_family::qwen2:
      return "qwen2";
    case model_family::qwen3:
      return "qwen3";
    case model_family::gemma2:
      return "gemma2";
    case model_family::gemma3:
      return "gemma3";
    case model_family::phi3:
      return "phi3";
    case model_family::mixtral:
      return "mixtral";
    case model_family::qwen3_moe:
      return "qwen3_moe";
  }
  return "";
}

model_config read_config(const std::filesystem::path& model) {
  if (is_gguf(model)) {
    const mapped_file content(model);
    return parse_config(model, config_text_of(read_gguf(model, content.bytes())));
  }
  const std::filesystem::path file = file_inside(model, "config.json");
  return parse_config(file, read_text(file, largest_config));
}

model_config parse_config(const std::filesystem::path& file, std::string text) {
  model_config config;
  config.file = file;
  config.text = std::move(text);
  const nlohmann::json raw = parse_json(config.file, config.text);
  const json_object json(config.file, raw, "");

  read_architecture(json, config);
  if (json.has("quantization_config")) json.unsupported("a quantized model (quantization_config)");
  config.hidden_size = json.extent("hidden_size");
  config.layers = json.extent("num_hidden_layers");
  config.heads = json.extent("num_attention_heads");
  config.vocab = json.extent("vocab_size");
  config.max_positions = json.extent("max_position_embeddings");
  if (config.family == model_family::opt) {
    read_opt(json, config);
  } else if (config.family == model_family::gemma2 || config.family == model_family::gemma3) {
    read_gemma(json, raw, config);
  } else {
    read_llama_like(json, config);
  }
  read_heads(json, config);
  if (config.rope.scaling == rope_scaling::factors &&
      std::cmp_not_equal(2 * config.rope.factors.size(), config.head_dim)) {
    json.fail("rope_parameters", "has " + std::to_string(config.rope.factors.size()) +
                                     " factors for heads of size " +
                                     std::to_string(config.head_dim));
  }
  read_sliding_window(json, raw, config);
  read_special_tokens(json, config);
  read_dtype(json, config);
  if (json.has("tokenizer")) {
    if (json.text("tokenizer") != "bytes") {
      json.unsupported("tokenizer '" + printable(json.text("tokenizer")) + "'");
    }
    if (config.vocab < 256) json.fail("vocab_size", "is below 256, the number of bytes");
    config.byte_tokens = true;
  }
  if (json.has("ressvd")) config.compressed = read_compressed(json.object("ressvd"));
  return config;
}

nlohmann::ordered_json to_json(const compressed_info& info) {
  nlohmann::ordered_json json;
  // Programs that know pairs only read version 1, and refuse version 2.
  json["version"] = info.form == "pair" ? 1 : 2;
  json["method"] = info.method;
  json["format"] = info.format;
  if (info.form != "pair") json["form"] = info.form;
  json["ratio"] = info.ratio;
  json["ranks"] = info.ranks;
  return json;
}

} // namespace ressvd_llm
