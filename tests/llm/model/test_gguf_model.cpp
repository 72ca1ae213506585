// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "fixture.hpp"
#include "io/gguf.hpp"
#include "io/gguf_model.hpp"
#include "io/mapped_file.hpp"
#include "io/tokenizer.hpp"
#include "llm/io/temporary.hpp"
#include "support/catch.hpp"

using namespace ressvd_llm;
using namespace ressvd_llm::testing;
using llm_test::file_error_of;

namespace {

const std::filesystem::path& gguf_fixtures() {
  static const std::filesystem::path directory =
      std::filesystem::path(RESSVD_LLM_FIXTURES) / "gguf";
  return directory;
}

// A file whose pairs are another's after a change, without its tensors' data: enough for a config.
std::string changed_metadata(const std::string& model, const std::function<void(gguf_pairs&)>& add,
                             const std::vector<std::string>& dropped) {
  const mapped_file file(gguf_fixtures() / (model + ".gguf"));
  const gguf_content content = read_gguf(model, file.bytes());
  gguf_pairs pairs;
  for (const gguf_value& value : content.metadata.values()) {
    if (std::find(dropped.begin(), dropped.end(), value.key) == dropped.end()) pairs.copy(value);
  }
  add(pairs);
  std::vector<gguf_tensor> tensors;
  std::string data;
  for (const stored_tensor& tensor : content.tensors) {
    tensors.push_back({tensor.name, *parse_dtype(tensor.type), tensor.shape, tensor.data.size()});
    data.append(reinterpret_cast<const char*>(tensor.data.data()), tensor.data.size());
    data.resize((data.size() + gguf_alignment - 1) / gguf_alignment * gguf_alignment, '\0');
  }
  return gguf_header(pairs, tensors) + data;
}

std::string config_refusal(const std::string& model, const std::function<void(gguf_pairs&)>& add,
                           const std::vector<std::string>& dropped = {}) {
  const llm_test::temporary_directory directory;
  const auto file = directory / "changed.gguf";
  llm_test::write(file, changed_metadata(model, add, dropped));
  return file_error_of([&] { language_model::open(file); });
}

} // namespace

TEST_CASE("a GGUF file gives the logits of the checkpoint it was made of", "[gguf]") {
  const struct {
    std::string name;
    double bound;
  } cases[] = {// The weights are the same; those of llama3 turn by factors in single precision.
               {"llama_linear", 0},
               {"llama3", 1e-5},
               // 11 bits of mantissa, and 8 bits with a scale.
               {"llama", 5e-3},
               {"qwen3", 5e-3},
               {"gemma2", 5e-3},
               {"gemma3", 5e-3},
               {"phi3", 0},
               {"qwen2", 0.1}};
  for (const auto& c : cases) {
    CAPTURE(c.name);
    const fixture f(c.name);
    const llm_test::temporary_directory dir;
    const auto directory = usual_in_gguf(f, dir / "model");
    const auto file = gguf_fixtures() / (c.name + ".gguf");
    const auto expected = run(language_model::open(directory), f.tokens, f.window());
    const language_model model = language_model::open(file);
    CHECK(relative_error(run(model, f.tokens, f.window()), expected) <= c.bound);
    const language_model mapped = language_model::open(file, {.memory_limit = 0});
    REQUIRE(mapped.storage() == weight_storage::mapped);
    CHECK(relative_error(run(mapped, f.tokens, f.window()), expected) <= c.bound + rounding);
    CHECK(model.source().names() == checkpoint::open(f.directory).names());
  }
}

TEST_CASE("the config of a GGUF file is that of the checkpoint it was made of", "[gguf]") {
  for (const char* const name :
       {"llama", "llama_linear", "llama3", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"}) {
    CAPTURE(name);
    const llm_test::temporary_directory dir;
    const model_config expected = read_config(usual_in_gguf(fixture(name), dir / "model"));
    const model_config config = read_config(gguf_fixtures() / (std::string(name) + ".gguf"));
    CHECK(config.family == expected.family);
    CHECK(config.hidden_size == expected.hidden_size);
    CHECK(config.intermediate_size == expected.intermediate_size);
    CHECK(config.layers == expected.layers);
    CHECK(config.heads == expected.heads);
    CHECK(config.kv_heads == expected.kv_heads);
    CHECK(config.head_dim == expected.head_dim);
    CHECK(config.vocab == expected.vocab);
    CHECK(config.max_positions == expected.max_positions);
    CHECK(config.norm_eps == expected.norm_eps);
    CHECK(config.rope.theta == expected.rope.theta);
    CHECK(config.rope.factor == (std::string(name) == "llama3" ? 1 : expected.rope.factor));
    CHECK(config.tied_embeddings == expected.tied_embeddings);
    CHECK(config.qkv_bias == expected.qkv_bias);
    CHECK(config.o_bias == expected.o_bias);
    CHECK(config.mlp_bias == expected.mlp_bias);
    CHECK(config.qk_norm == expected.qk_norm);
    CHECK(config.sliding_window == expected.sliding_window);
    CHECK(config.full_attention == expected.full_attention);
    CHECK(config.activation == expected.activation);
    CHECK(config.attention_scale == expected.attention_scale);
    CHECK(config.attention_cap == expected.attention_cap);
    CHECK(config.logit_cap == expected.logit_cap);
    CHECK(config.embedding_scale == expected.embedding_scale);
    CHECK(config.norms_around_zero == expected.norms_around_zero);
    REQUIRE(config.local_rope.has_value() == expected.local_rope.has_value());
    if (config.local_rope) CHECK(config.local_rope->theta == expected.local_rope->theta);
    CHECK(config.bos == expected.bos);
    CHECK(config.eos == expected.eos);
    // What the text says is what was read.
    const model_config again = parse_config("again", config.text);
    CHECK(again.rope.factors == config.rope.factors);
    CHECK(again.head_dim == config.head_dim);
  }
}

TEST_CASE("a sliding window in a GGUF file makes a Mistral model", "[gguf]") {
  const llm_test::temporary_directory directory;
  const auto file = directory / "mistral.gguf";
  llm_test::write(file, changed_metadata(
                            "llama_linear",
                            [](gguf_pairs& p) { p.u32("llama.attention.sliding_window", 9); }, {}));
  const model_config config = read_config(file);
  CHECK(config.family == model_family::mistral);
  CHECK(config.sliding_window == 9);
}

TEST_CASE("Gemma's files leave unsaid what llama.cpp assumes", "[gguf]") {
  const llm_test::temporary_directory directory;
  const auto config_of = [&](const char* name, const std::function<void(gguf_pairs&)>& add,
                             const std::vector<std::string>& dropped) {
    llm_test::write(directory / "changed.gguf", changed_metadata(name, add, dropped));
    return read_config(directory / "changed.gguf");
  };
  const auto nothing = [](gguf_pairs&) {};
  const model_config second =
      config_of("gemma2", nothing,
                {"gemma2.attention.sliding_window", "gemma2.attn_logit_softcapping",
                 "gemma2.final_logit_softcapping", "gemma2.rope.freq_base"});
  CHECK(second.sliding_window == 4096);
  CHECK(second.full_attention == std::vector<bool>{false, true});
  CHECK(second.attention_cap == 50);
  CHECK(second.logit_cap == 30);
  CHECK(second.rope.theta == 10'000);
  const model_config third = config_of(
      "gemma3", nothing, {"gemma3.attention.sliding_window_pattern", "gemma3.rope.freq_base_swa"});
  CHECK(third.sliding_window == 9);
  CHECK(third.full_attention.empty());
  CHECK(third.local_rope->theta == 10'000);
  CHECK(!config_of("gemma3", nothing, {"gemma3.attention.sliding_window"}).sliding_window);
  const auto every = [](std::uint32_t layers) {
    return [=](gguf_pairs& p) { p.u32("gemma3.attention.sliding_window_pattern", layers); };
  };
  const std::vector<std::string> pattern = {"gemma3.attention.sliding_window_pattern"};
  CHECK(config_of("gemma3", every(2), pattern).full_attention == std::vector<bool>{false, true});
  CHECK(!config_of("gemma3", every(1), pattern).sliding_window);
  CHECK(config_of("gemma3", every(0), pattern).full_attention.empty());
}

TEST_CASE("what a GGUF file asks for and the program has not is refused by name", "[gguf]") {
  const auto text = [](const char* key, const char* value) {
    return [=](gguf_pairs& pairs) { pairs.text(key, value); };
  };
  const auto u32 = [](const char* key, std::uint32_t value) {
    return [=](gguf_pairs& pairs) { pairs.u32(key, value); };
  };
  const auto nothing = [](gguf_pairs&) {};
  const auto refused = [](const std::string& message, const char* part) {
    CHECK_THAT(message, contains_text("changed.gguf: "));
    CHECK_THAT(message, contains_text(part));
  };
  refused(config_refusal("llama", text("general.architecture", "opt"), {"general.architecture"}),
          "architecture 'opt' is not supported");
  refused(config_refusal("llama", text("general.type", "adapter"), {"general.type"}),
          "a file of type 'adapter' is not supported");
  refused(config_refusal("llama", u32("split.count", 3)), "is one of 3 parts of a model");
  refused(config_refusal("llama", text("llama.rope.scaling.type", "yarn")),
          "rotary embedding of type 'yarn' is not supported");
  refused(config_refusal("llama", u32("llama.expert_count", 8)),
          "key 'llama.expert_used_count' is missing");
  refused(config_refusal("qwen2", u32("qwen2.expert_count", 8)), "key 'qwen2.expert_count'");
  const auto experts = [](const char* key, std::uint32_t value) {
    return [=](gguf_pairs& pairs) {
      pairs.u32("llama.expert_count", 8);
      pairs.u32("llama.expert_used_count", 2);
      if (key != nullptr) pairs.u32(key, value);
    };
  };
  refused(config_refusal("llama", experts("llama.expert_shared_count", 1)),
          "key 'llama.expert_shared_count'");
  refused(config_refusal("llama", experts("llama.expert_gating_func", 2)),
          "key 'llama.expert_gating_func'");
  // Of experts whose tensors are not there.
  refused(config_refusal("llama", experts(nullptr, 0)),
          "model.layers.0.block_sparse_moe.experts.0.w1.weight");
  refused(
      config_refusal("llama", u32("llama.rope.dimension_count", 4), {"llama.rope.dimension_count"}),
      "a rotary embedding of 4 of 8 elements");
  refused(config_refusal("llama", u32("llama.attention.value_length", 4)), "a head size of values");
  refused(config_refusal("llama", nothing, {"llama.block_count"}),
          "key 'llama.block_count' is missing");
  refused(config_refusal("llama", text("llama.block_count", "two"), {"llama.block_count"}),
          "key 'llama.block_count' is not an integer");
  refused(config_refusal("llama", u32("llama.block_count", 3), {"llama.block_count"}),
          "tensor model.layers.2.self_attn.q_proj.weight: missing");
  refused(
      config_refusal("llama", u32("llama.attention.head_count", 0), {"llama.attention.head_count"}),
      "key 'llama.attention.head_count' is below 1");
  refused(config_refusal("llama3", u32("llama.rope.scaling.factor", 2)),
          "a linear scaling beside rope_freqs.weight");
  const auto f32 = [](const char* key, float value) {
    return [=](gguf_pairs& pairs) { pairs.f32(key, value); };
  };
  const char* const pattern = "gemma3.attention.sliding_window_pattern";
  refused(config_refusal("gemma2", f32("gemma2.rope.freq_base_swa", 5)),
          "key 'gemma2.rope.freq_base_swa' is not supported");
  refused(config_refusal("gemma2", f32("gemma2.attn_logit_softcapping", 0),
                         {"gemma2.attn_logit_softcapping"}),
          "attn_logit_softcapping' is not a positive number");
  refused(config_refusal("gemma3", f32("gemma3.attn_logit_softcapping", 5)),
          "key 'gemma3.attn_logit_softcapping' is not supported");
  refused(config_refusal("gemma3",
                         [&](gguf_pairs& pairs) {
                           pairs.flags(pattern, {true, false, true});
                         },
                         {pattern}),
          "does not list as many layers as there are");
  refused(config_refusal("gemma3", text(pattern, "every second"), {pattern}), "is not an integer");
  refused(config_refusal("phi3", u32("phi3.feed_forward_length", 64), {"phi3.feed_forward_length"}),
          "tensor model.layers.0.mlp.gate_up_proj.weight: shape [112, 32] where 128 rows are "
          "expected");
  refused(
      config_refusal("qwen2", u32("qwen2.feed_forward_length", 64), {"qwen2.feed_forward_length"}),
      "shape [56, 32] where [64, 32] is expected");
}

TEST_CASE("tensors of types that are not decoded are refused by name", "[gguf]") {
  // As long as Q4_0, whose number is 2, is IQ4_NL, whose number is 20.
  const mapped_file whole(gguf_fixtures() / "qwen2.gguf");
  const gguf_content content = read_gguf("qwen2.gguf", whole.bytes());
  gguf_pairs pairs;
  for (const gguf_value& value : content.metadata.values())
    pairs.copy(value);
  const std::string name = "token_embd.weight";
  std::string file = gguf_header(pairs, std::vector<gguf_tensor>{{name, dtype::q4_0, {80, 32}, 0}});
  const std::size_t type = file.find(name) + name.size() + 4 + 2 * 8;
  REQUIRE(file[type] == 2);
  file[type] = 20;
  const llm_test::temporary_directory directory;
  llm_test::write(directory / "other.gguf", file + std::string(80 * 18, '\0'));
  const checkpoint source = checkpoint::open(directory / "other.gguf");
  CHECK(source.describe("model.embed_tokens.weight").type == "IQ4_NL");
  CHECK_THAT(file_error_of([&] { source.at("model.embed_tokens.weight"); }),
             contains_text("other.gguf: tensor model.embed_tokens.weight: element type IQ4_NL is "
                           "not supported"));
}

TEST_CASE("a GGUF file without a tokenizer asks for token ids", "[gguf]") {
  const auto file = gguf_fixtures() / "llama.gguf";
  const model_config config = read_config(file);
  CHECK(open_tokenizer(file, config)->vocab() == config.vocab);
  const mapped_file whole(file);
  const gguf_content content = read_gguf(file, whole.bytes());
  gguf_pairs pairs;
  for (const gguf_value& value : content.metadata.values()) {
    if (!value.key.starts_with("tokenizer.")) pairs.copy(value);
  }
  pairs.text("tokenizer.ggml.model", "none");
  const llm_test::temporary_directory directory;
  llm_test::write(directory / "other.gguf", gguf_header(pairs, {}));
  CHECK_THAT(file_error_of([&] { open_tokenizer(directory / "other.gguf", config); }),
             contains_text("other.gguf: holds no tokenizer: give token ids"));
}
