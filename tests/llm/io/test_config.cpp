// SPDX-License-Identifier: Apache-2.0
#include "io/config.hpp"

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "llm/io/temporary.hpp"
#include "support/catch.hpp"

using namespace llm_test;
using nlohmann::json;
using ressvd_llm::model_config;
using ressvd_llm::model_family;
using ressvd_llm::rope_scaling;

namespace {

json llama() {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"hidden_size", 64},
          {"intermediate_size", 96},
          {"num_hidden_layers", 4},
          {"num_attention_heads", 8},
          {"vocab_size", 300},
          {"max_position_embeddings", 128},
          {"rms_norm_eps", 1e-6}};
}

json of(const char* architecture) {
  json config = llama();
  config["architectures"] = {architecture};
  config["num_key_value_heads"] = 2;
  if (std::string(architecture) == "Qwen3ForCausalLM") config["head_dim"] = 16;
  return config;
}

json mixture(const char* architecture) {
  json config = of(architecture);
  config["num_experts_per_tok"] = 2;
  if (std::string(architecture) == "MixtralForCausalLM") {
    config["num_local_experts"] = 8;
  } else {
    config["num_experts"] = 6;
    config["moe_intermediate_size"] = 24;
  }
  return config;
}

json opt() {
  return {{"architectures", {"OPTForCausalLM"}},
          {"hidden_size", 64},
          {"ffn_dim", 256},
          {"num_hidden_layers", 4},
          {"num_attention_heads", 8},
          {"vocab_size", 300},
          {"max_position_embeddings", 128}};
}

json with(json config, const std::string& key, const json& value) {
  config[key] = value;
  return config;
}

model_config parsed(const std::string& text) {
  const temporary_directory directory;
  write(directory / "config.json", text);
  return ressvd_llm::read_config(directory.path());
}

model_config parsed(const json& config) {
  return parsed(config.dump());
}

std::string refusal(const json& config) {
  return file_error_of([&] { parsed(config); });
}

} // namespace

TEST_CASE("a LLaMA config without options has the family's defaults", "[config]") {
  const model_config config = parsed(llama());
  CHECK(config.family == model_family::llama);
  CHECK(config.architecture == "LlamaForCausalLM");
  CHECK(config.hidden_size == 64);
  CHECK(config.intermediate_size == 96);
  CHECK(config.layers == 4);
  CHECK(config.heads == 8);
  CHECK(config.kv_heads == 8);
  CHECK(config.head_dim == 8);
  CHECK(config.vocab == 300);
  CHECK(config.max_positions == 128);
  CHECK(config.norm_eps == 1e-6);
  CHECK(config.rope.theta == 10000.0);
  CHECK(config.rope.scaling == rope_scaling::none);
  CHECK(config.activation == ressvd_llm::activation_kind::silu);
  CHECK(!config.sliding_window);
  CHECK(!config.tied_embeddings);
  CHECK(!config.qkv_bias);
  CHECK(!config.o_bias);
  CHECK(!config.mlp_bias);
  CHECK(!config.qk_norm);
  CHECK(!config.byte_tokens);
  CHECK(!config.bos);
  CHECK(config.eos.empty());
  CHECK(!config.type);
  CHECK(!config.compressed);
  CHECK(json::parse(config.text) == llama());
}

TEST_CASE("options are read", "[config]") {
  json raw = llama();
  raw.update({{"num_key_value_heads", 2},
              {"head_dim", 24},
              {"tie_word_embeddings", true},
              {"attention_bias", true},
              {"mlp_bias", true},
              {"hidden_act", "gelu_pytorch_tanh"},
              {"torch_dtype", "bfloat16"},
              {"bos_token_id", 1},
              {"eos_token_id", {2, 299}},
              {"tokenizer", "bytes"},
              {"sliding_window", nullptr}});
  const model_config config = parsed(raw);
  CHECK(config.kv_heads == 2);
  CHECK(config.head_dim == 24);
  CHECK(config.tied_embeddings);
  CHECK((config.qkv_bias && config.o_bias && config.mlp_bias));
  CHECK(config.activation == ressvd_llm::activation_kind::gelu_tanh);
  CHECK(config.type == ressvd_llm::dtype::bf16);
  CHECK(config.bos == 1);
  CHECK(config.eos == std::vector<std::int32_t>{2, 299});
  CHECK(config.byte_tokens);
  CHECK(parsed(with(llama(), "eos_token_id", 2)).eos == std::vector<std::int32_t>{2});
  CHECK(parsed(with(llama(), "dtype", "float16")).type == ressvd_llm::dtype::f16);
}

TEST_CASE("rotary embeddings are read in both spellings", "[config]") {
  const json llama3 = {{"rope_type", "llama3"},
                       {"factor", 8.0},
                       {"low_freq_factor", 1.0},
                       {"high_freq_factor", 4.0},
                       {"original_max_position_embeddings", 64}};
  json old_spelling = with(with(llama(), "rope_theta", 5e5), "rope_scaling", llama3);
  json new_spelling = with(llama(), "rope_parameters", with(llama3, "rope_theta", 5e5));
  for (const json& raw : {old_spelling, new_spelling}) {
    const ressvd_llm::rope_config rope = parsed(raw).rope;
    CHECK(rope.theta == 5e5);
    CHECK(rope.scaling == rope_scaling::llama3);
    CHECK(rope.factor == 8.0);
    CHECK(rope.low_freq_factor == 1.0);
    CHECK(rope.high_freq_factor == 4.0);
    CHECK(rope.original_max_positions == 64);
  }
  const auto linear = parsed(with(llama(), "rope_scaling", {{"type", "linear"}, {"factor", 2}}));
  CHECK(linear.rope.scaling == rope_scaling::linear);
  CHECK(linear.rope.factor == 2.0);
  CHECK(parsed(with(llama(), "rope_scaling", nullptr)).rope.scaling == rope_scaling::none);
  CHECK(parsed(with(llama(), "rope_parameters", {{"rope_type", "default"}, {"rope_theta", 9.0}}))
            .rope.theta == 9.0);

  CHECK_THAT(refusal(with(llama(), "rope_scaling", {{"type", "yarn"}, {"factor", 2}})),
             contains_text("config.json: rotary embedding of type 'yarn' is not supported"));
  CHECK_THAT(refusal(with(llama(), "rope_scaling", {{"type", "linear"}})),
             contains_text("key 'rope_scaling.factor' is missing"));
  CHECK_THAT(refusal(with(llama(), "rope_scaling", {{"factor", 2}})),
             contains_text("key 'rope_scaling.rope_type' is missing"));
  CHECK_THAT(refusal(with(llama(), "rope_scaling", "linear")),
             contains_text("'rope_scaling' is not an object"));
  CHECK_THAT(refusal(with(llama(), "rope_scaling", with(llama3, "factor", 0))),
             contains_text("key 'rope_scaling.factor' is not a positive number"));
  CHECK_THAT(refusal(with(llama(), "rope_scaling", with(llama3, "high_freq_factor", 1.0))),
             contains_text("key 'rope_scaling.high_freq_factor' is not above low_freq_factor"));
  CHECK_THAT(refusal(with(llama(), "partial_rotary_factor", 0.5)),
             contains_text("a partial rotary embedding is not supported"));
}

TEST_CASE("each family has its biases and norms", "[config]") {
  const model_config mistral = parsed(of("MistralForCausalLM"));
  CHECK((!mistral.qkv_bias && !mistral.o_bias && !mistral.mlp_bias && !mistral.qk_norm));
  const model_config qwen2 = parsed(of("Qwen2ForCausalLM"));
  CHECK((qwen2.qkv_bias && !qwen2.o_bias && !qwen2.mlp_bias && !qwen2.qk_norm));
  const model_config qwen3 = parsed(of("Qwen3ForCausalLM"));
  CHECK((!qwen3.qkv_bias && !qwen3.o_bias && !qwen3.mlp_bias && qwen3.qk_norm));
  CHECK(qwen3.head_dim == 16);
  const model_config facebook = parsed(opt());
  CHECK((facebook.qkv_bias && facebook.o_bias && facebook.mlp_bias));
  CHECK(facebook.tied_embeddings);
  CHECK(facebook.intermediate_size == 256);
  CHECK(facebook.norm_eps == 1e-5);
  CHECK(facebook.activation == ressvd_llm::activation_kind::relu);
  CHECK(!parsed(with(opt(), "enable_bias", false)).qkv_bias);
}

TEST_CASE("attention windows hold for some layers, all or none", "[config]") {
  CHECK(parsed(of("MistralForCausalLM")).sliding_window == 4096);
  CHECK(parsed(with(of("MistralForCausalLM"), "sliding_window", 32)).sliding_window == 32);
  CHECK(!parsed(with(of("MistralForCausalLM"), "sliding_window", nullptr)).sliding_window);
  CHECK(!parsed(with(llama(), "sliding_window", 32)).sliding_window);

  json qwen = with(of("Qwen2ForCausalLM"), "sliding_window", 32);
  CHECK(!parsed(qwen).sliding_window);
  qwen["use_sliding_window"] = true;
  for (const std::int64_t negative : {std::int64_t{-1}, std::numeric_limits<std::int64_t>::min()}) {
    CHECK_THAT(refusal(with(qwen, "max_window_layers", negative)),
               contains_text("key 'max_window_layers' is negative"));
  }
  qwen["max_window_layers"] = 4;
  CHECK(!parsed(qwen).sliding_window);
  qwen["max_window_layers"] = 0;
  CHECK(parsed(qwen).sliding_window == 32);
  CHECK(parsed(qwen).full_attention.empty());
  qwen["max_window_layers"] = 2;
  CHECK(parsed(qwen).full_attention == std::vector<bool>{true, true, false, false});
  qwen["layer_types"] = {"sliding_attention", "sliding_attention", "sliding_attention",
                         "sliding_attention"};
  CHECK(parsed(qwen).sliding_window == 32);
  qwen["layer_types"] = {"full_attention", "full_attention", "full_attention", "full_attention"};
  CHECK(!parsed(qwen).sliding_window);
  qwen["layer_types"][1] = "sliding_attention";
  CHECK(parsed(qwen).sliding_window == 32);
  CHECK(parsed(qwen).full_attention == std::vector<bool>{true, false, true, true});
  qwen["layer_types"][1] = "chunked_attention";
  CHECK_THAT(refusal(qwen), contains_text("a layer type other than full and sliding attention"));
  qwen["layer_types"] = {"full_attention"};
  CHECK_THAT(refusal(qwen), contains_text("key 'layer_types' is not a list of num_hidden_layers"));
}

TEST_CASE("Gemma's norms, caps, scales and windows are read", "[config]") {
  const json second = with(of("Gemma2ForCausalLM"), "head_dim", 12);
  model_config config = parsed(second);
  CHECK(config.family == model_family::gemma2);
  CHECK(config.head_dim == 12);
  CHECK(parsed(of("Gemma2ForCausalLM")).head_dim == 256);
  CHECK(config.tied_embeddings);
  CHECK(config.norms_around_zero);
  CHECK(config.post_norms);
  CHECK(!config.qk_norm);
  CHECK(config.activation == ressvd_llm::activation_kind::gelu_tanh);
  CHECK(config.attention_scale == 1.0 / 16);
  CHECK(config.attention_cap == 50);
  CHECK(config.logit_cap == 30);
  CHECK(config.embedding_scale == 8);
  CHECK(config.sliding_window == 4096);
  CHECK(config.full_attention == std::vector<bool>{false, true, false, true});
  CHECK(!config.local_rope);
  config =
      parsed(with(with(second, "attn_logit_softcapping", nullptr), "query_pre_attn_scalar", 4));
  CHECK(config.attention_cap == 0);
  CHECK(config.attention_scale == 0.5);
  CHECK(parsed(with(second, "final_logit_softcapping", nullptr)).logit_cap == 0);
  CHECK(parsed(with(second, "sliding_window", nullptr)).full_attention.empty());
  CHECK_THAT(refusal(with(second, "attn_logit_softcapping", -1)),
             contains_text("key 'attn_logit_softcapping' is not a positive number"));
  CHECK_THAT(refusal(with(second, "query_pre_attn_scalar", 0)),
             contains_text("key 'query_pre_attn_scalar' is not a positive number"));
  CHECK_THAT(refusal(with(second, "use_bidirectional_attention", true)),
             contains_text("bidirectional attention is not supported"));

  json third = with(of("Gemma3ForCausalLM"), "sliding_window", 32);
  config = parsed(third);
  CHECK(config.qk_norm);
  CHECK(config.attention_cap == 0);
  CHECK(config.logit_cap == 0);
  CHECK(config.full_attention.empty()); // of four layers; every sixth is full
  REQUIRE(config.local_rope);
  CHECK(config.rope.theta == 1e6);
  CHECK(config.local_rope->theta == 1e4);
  third["sliding_window_pattern"] = 2;
  third["rope_local_base_freq"] = 500;
  third["rope_theta"] = 2e6;
  third["rope_scaling"] = {{"rope_type", "linear"}, {"factor", 8}};
  config = parsed(third);
  CHECK(config.full_attention == std::vector<bool>{false, true, false, true});
  CHECK(config.rope.theta == 2e6);
  CHECK(config.rope.factor == 8);
  CHECK(config.local_rope->theta == 500);
  CHECK(config.local_rope->scaling == rope_scaling::none);
  third["rope_parameters"] = {
      {"full_attention", {{"rope_type", "linear"}, {"factor", 4}, {"rope_theta", 3e6}}},
      {"sliding_attention", {{"rope_type", "default"}, {"rope_theta", 700}}}};
  config = parsed(third);
  CHECK(config.rope.theta == 3e6);
  CHECK(config.rope.factor == 4);
  CHECK(config.local_rope->theta == 700);
  CHECK_THAT(refusal(with(third, "sliding_window_pattern", 0)),
             contains_text("key 'sliding_window_pattern'"));
}

TEST_CASE("Phi-3's windows and rotations are read", "[config]") {
  const json phi = llama();
  json raw = with(phi, "architectures", {"Phi3ForCausalLM"});
  CHECK(parsed(raw).family == model_family::phi3);
  CHECK(parsed(raw).kv_heads == 8);
  CHECK(!parsed(raw).sliding_window);
  raw["sliding_window"] = 32;
  CHECK(parsed(raw).sliding_window == 32);
  CHECK(parsed(raw).full_attention.empty());
  CHECK_THAT(refusal(with(raw, "partial_rotary_factor", 0.75)),
             contains_text("a partial rotary embedding is not supported"));
  json factors = json::array();
  for (int i = 0; i < 4; ++i)
    factors.push_back(1.0 + i);
  raw["rope_scaling"] = {{"type", "longrope"}, {"short_factor", factors}, {"long_factor", factors}};
  CHECK_THAT(refusal(raw), contains_text("longrope"));
}

TEST_CASE("what is not supported is named", "[config]") {
  CHECK_THAT(
      refusal(of("Qwen2MoeForCausalLM")),
      contains_text("config.json: architecture 'Qwen2MoeForCausalLM' is not supported "
                    "(LlamaForCausalLM, MistralForCausalLM, OPTForCausalLM, "
                    "Qwen2ForCausalLM, Qwen3ForCausalLM, Gemma2ForCausalLM, "
                    "Gemma3ForCausalLM, Phi3ForCausalLM, MixtralForCausalLM, Qwen3MoeForCausalLM "
                    "are)"));
  CHECK_THAT(refusal(with(llama(), "hidden_act", "gelu_fast")),
             contains_text("activation 'gelu_fast' is not supported"));
  CHECK_THAT(refusal(with(llama(), "quantization_config", {{"bits", 4}})),
             contains_text("a quantized model (quantization_config) is not supported"));
  CHECK_THAT(refusal(with(llama(), "torch_dtype", "float8_e4m3fn")),
             contains_text("element type 'float8_e4m3fn' is not supported"));
  CHECK_THAT(refusal(with(llama(), "tokenizer", "words")),
             contains_text("tokenizer 'words' is not supported"));
  CHECK_THAT(refusal(with(llama(), "head_dim", 7)),
             contains_text("an odd head size (7) is not supported"));
  CHECK_THAT(refusal(with(opt(), "do_layer_norm_before", false)),
             contains_text("OPT with post-norm is not supported"));
  CHECK_THAT(refusal(with(opt(), "word_embed_proj_dim", 32)),
             contains_text("OPT with projected embeddings (word_embed_proj_dim) is not supported"));
  CHECK_THAT(refusal(with(opt(), "_remove_final_layer_norm", true)),
             contains_text("OPT without final norm is not supported"));
  CHECK_THAT(refusal(with(opt(), "layer_norm_elementwise_affine", false)),
             contains_text("OPT with layer norms without weights is not supported"));
}

TEST_CASE("every required key is asked for by name", "[config]") {
  const auto check = [](const json& whole, const std::string& key) {
    for (json config : {json(whole), with(whole, key, nullptr)}) {
      if (!config[key].is_null()) config.erase(key);
      CHECK_THAT(refusal(config), contains_text("config.json: key '" + key + "' is missing"));
    }
  };
  for (const json& whole : {llama(), opt()}) {
    for (const auto& [key, value] : whole.items())
      check(whole, key);
  }
  check(of("MistralForCausalLM"), "num_key_value_heads");
  check(of("Qwen3ForCausalLM"), "head_dim");
}

TEST_CASE("malformed values are refused by key", "[config]") {
  const struct {
    std::string key;
    json value;
    std::string message;
  } cases[] = {
      {"hidden_size", "64", "key 'hidden_size' is not an integer"},
      {"hidden_size", 64.5, "key 'hidden_size' is not an integer"},
      {"hidden_size", 0, "key 'hidden_size' is 0, outside [1, 2^31)"},
      {"hidden_size", -64, "key 'hidden_size' is -64, outside"},
      {"hidden_size", 2147483648, "key 'hidden_size' is 2147483648, outside"},
      {"hidden_size", 18446744073709551615u, "key 'hidden_size' is too large"},
      {"hidden_size", 65, "key 'hidden_size' (65) is not a multiple of num_attention_heads (8)"},
      {"num_key_value_heads", 3,
       "key 'num_attention_heads' (8) is not a multiple of num_key_value_heads (3)"},
      {"rms_norm_eps", "small", "key 'rms_norm_eps' is not a number"},
      {"rms_norm_eps", -1e-5, "key 'rms_norm_eps' is not a positive number"},
      {"tie_word_embeddings", 1, "key 'tie_word_embeddings' is neither true nor false"},
      {"hidden_act", 1, "key 'hidden_act' is not a text"},
      {"architectures", "LlamaForCausalLM", "key 'architectures' is not a list of one name"},
      {"architectures", json::array(), "key 'architectures' is not a list of one name"},
      {"bos_token_id", 300, "key 'bos_token_id' (300) is outside the vocabulary of 300"},
      {"eos_token_id", {2, -1}, "key 'eos_token_id' (-1) is outside the vocabulary of 300"},
      {"eos_token_id", "2", "key 'eos_token_id' is not a token id"},
  };
  for (const auto& c : cases) {
    CAPTURE(c.key, c.value.dump());
    CHECK_THAT(refusal(with(llama(), c.key, c.value)), contains_text("config.json: " + c.message));
  }
  CHECK_THAT(refusal(with(llama(), "head_dim", 1 << 30)),
             contains_text("key 'num_attention_heads' (8) of size 1073741824 are beyond"));
  CHECK_THAT(refusal(with(with(llama(), "vocab_size", 255), "tokenizer", "bytes")),
             contains_text("key 'vocab_size' is below 256"));
}

TEST_CASE("what is no config is refused", "[config]") {
  const auto refusal_of_text = [](const std::string& text) {
    return file_error_of([&] { parsed(text); });
  };
  CHECK_THAT(refusal_of_text(""), contains_text("config.json: is not valid JSON (at byte"));
  CHECK_THAT(refusal_of_text("[]"), contains_text("config.json: is not a JSON object"));
  CHECK_THAT(refusal_of_text("{\"hidden_size\":1e999}"), contains_text("is not valid JSON"));
  CHECK_THAT(refusal_of_text("{\"a\":" + std::string(100'000, '[')),
             contains_text("config.json: is JSON nested too deeply"));
  CHECK_THAT(refusal_of_text("{\"a\":\"\xff\"}"), contains_text("is not valid JSON"));
  const temporary_directory directory;
  CHECK(file_error_of([&] { ressvd_llm::read_config(directory.path()); }) ==
        (directory / "config.json").string() + ": no such file");
  CHECK(file_error_of([&] { ressvd_llm::read_config(directory / "gone"); }) ==
        (directory / "gone").string() + ": no such directory");
}

TEST_CASE("the note of a compressed checkpoint is written and read back", "[config]") {
  const ressvd_llm::compressed_info info{
      .method = "ressvd",
      .ratio = 0.2,
      .ranks = {{"model.layers.3.self_attn.q_proj", 12}, {"model.layers.3.mlp.up_proj", 20}}};
  const json note = json::parse(ressvd_llm::to_json(info).dump());
  const model_config config = parsed(with(llama(), "ressvd", note));
  REQUIRE(config.compressed);
  CHECK(note["version"] == 1);
  CHECK(!note.contains("form"));
  CHECK(config.compressed->form == "pair");
  CHECK(config.compressed->method == info.method);
  CHECK(config.compressed->format == "factored");
  CHECK(config.compressed->ratio == info.ratio);
  CHECK(config.compressed->ranks == info.ranks);

  CHECK_THAT(refusal(with(llama(), "ressvd", with(note, "version", 3))),
             contains_text("version 3 of compressed checkpoints is not supported"));
  CHECK_THAT(refusal(with(llama(), "ressvd", with(note, "version", 2))),
             contains_text("key 'ressvd.form' is missing"));
  CHECK_THAT(refusal(with(llama(), "ressvd", with(note, "ranks", {{"q", 0}}))),
             contains_text("key 'ressvd.ranks.q' is 0, outside"));
  CHECK_THAT(refusal(with(llama(), "ressvd", with(note, "method", nullptr))),
             contains_text("key 'ressvd.method' is missing"));
  CHECK_THAT(refusal(with(llama(), "ressvd", true)), contains_text("'ressvd' is not an object"));
}

TEST_CASE("the form of compressed matrices is noted from version 2 on", "[config]") {
  const ressvd_llm::compressed_info info{
      .method = "svd", .form = "pivoted", .ratio = 0.2, .ranks = {{"model.layers.0.mlp.up", 3}}};
  const json note = json::parse(ressvd_llm::to_json(info).dump());
  CHECK(note["version"] == 2);
  const model_config config = parsed(with(llama(), "ressvd", note));
  REQUIRE(config.compressed);
  CHECK(config.compressed->form == "pivoted");
  CHECK(config.compressed->ranks == info.ranks);
  const model_config pairs = parsed(with(llama(), "ressvd", with(note, "form", "pair")));
  CHECK(pairs.compressed->form == "pair");

  CHECK_THAT(refusal(with(llama(), "ressvd", with(note, "form", "triple"))),
             contains_text("form 'triple' of compressed matrices is not supported"));
  CHECK_THAT(refusal(with(llama(), "ressvd", with(note, "form", 2))),
             contains_text("key 'ressvd.form' is not a text"));
}

TEST_CASE("weights of integers are refused", "[config]") {
  for (const char* type : {"int32", "I32"}) {
    CHECK_THAT(refusal(with(llama(), "dtype", type)),
               contains_text(std::string("element type '") + type + "' is not supported"));
  }
}

TEST_CASE("config.json says which layers are mixtures of which experts", "[config]") {
  const model_config mixtral = parsed(mixture("MixtralForCausalLM"));
  CHECK(mixtral.family == model_family::mixtral);
  CHECK(mixtral.experts == 8);
  CHECK(mixtral.experts_per_token == 2);
  CHECK(mixtral.expert_intermediate_size == 96);
  CHECK(mixtral.normalised_experts);
  CHECK_FALSE(mixtral.qk_norm);
  CHECK_FALSE(mixtral.sliding_window);
  CHECK(mixtral.rope.theta == 1e6);
  for (std::int64_t layer = 0; layer < mixtral.layers; ++layer)
    CHECK(mixtral.is_mixture(layer));
  CHECK(parsed(with(mixture("MixtralForCausalLM"), "sliding_window", 32)).sliding_window == 32);

  json qwen = mixture("Qwen3MoeForCausalLM");
  model_config config = parsed(qwen);
  CHECK(config.family == model_family::qwen3_moe);
  CHECK(config.experts == 6);
  CHECK(config.expert_intermediate_size == 24);
  CHECK(config.head_dim == 8);
  CHECK(config.qk_norm);
  CHECK_FALSE(config.normalised_experts);
  CHECK(parsed(with(qwen, "norm_topk_prob", true)).normalised_experts);
  qwen["decoder_sparse_step"] = 2;
  qwen["mlp_only_layers"] = {3};
  config = parsed(qwen);
  CHECK_FALSE(config.is_mixture(0));
  CHECK(config.is_mixture(1));
  CHECK_FALSE(config.is_mixture(2));
  CHECK_FALSE(config.is_mixture(3));
  qwen.erase("num_experts");
  CHECK(parsed(with(qwen, "num_local_experts", 5)).experts == 5);
  CHECK_FALSE(parsed(llama()).is_mixture(0));
}

TEST_CASE("impossible mixtures are refused", "[config]") {
  const json mixtral = mixture("MixtralForCausalLM");
  const json qwen = mixture("Qwen3MoeForCausalLM");
  CHECK_THAT(refusal(with(mixtral, "num_local_experts", 0)), contains_text("num_local_experts"));
  CHECK_THAT(refusal(with(mixtral, "num_local_experts", 2147483647)), contains_text("above 4096"));
  CHECK_THAT(refusal(with(mixtral, "num_experts_per_tok", 9)),
             contains_text("above the number of experts (8)"));
  CHECK_THAT(refusal(with(mixtral, "num_experts_per_tok", nullptr)),
             contains_text("num_experts_per_tok"));
  CHECK_THAT(refusal(with(qwen, "moe_intermediate_size", -1)),
             contains_text("moe_intermediate_size"));
  CHECK_THAT(refusal(with(qwen, "mlp_only_layers", {4})), contains_text("outside the 4 layers"));
  CHECK_THAT(refusal(with(qwen, "mlp_only_layers", {"a"})), contains_text("not a list of layers"));
  CHECK_THAT(refusal(with(qwen, "mlp_only_layers", 2)), contains_text("not a list of layers"));
  CHECK_THAT(refusal(with(qwen, "decoder_sparse_step", 0)), contains_text("decoder_sparse_step"));
}
