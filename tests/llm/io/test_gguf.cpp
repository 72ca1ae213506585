// SPDX-License-Identifier: Apache-2.0
#include "io/gguf.hpp"

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/checkpoint.hpp"
#include "io/config.hpp"
#include "io/gguf_model.hpp"
#include "io/gguf_tokenizer.hpp"
#include "io/mapped_file.hpp"
#include "llm/io/temporary.hpp"
#include "support/catch.hpp"

using namespace llm_test;
using ressvd_llm::gguf_content;
using ressvd_llm::gguf_kind;
using ressvd_llm::read_gguf;

namespace {

// A GGUF file, field by field.
class gguf_text {
 public:
  gguf_text(std::uint64_t tensors, std::uint64_t pairs, std::uint32_t version = 3) {
    bytes = "GGUF";
    u32(version).u64(tensors).u64(pairs);
  }
  gguf_text& u32(std::uint32_t value) { return raw(bytes_of(std::vector{value})); }
  gguf_text& u64(std::uint64_t value) { return raw(bytes_of(std::vector{value})); }
  gguf_text& text(std::string_view value) { return u64(value.size()).raw(value); }
  gguf_text& raw(std::string_view value) {
    bytes += value;
    return *this;
  }
  gguf_text& pair(std::string_view key, gguf_kind kind) {
    return text(key).u32(static_cast<std::uint32_t>(kind));
  }
  gguf_text& tensor(std::string_view name, const std::vector<std::uint64_t>& extents,
                    std::uint32_t type, std::uint64_t offset) {
    text(name).u32(static_cast<std::uint32_t>(extents.size()));
    for (const std::uint64_t extent : extents)
      u64(extent);
    return u32(type).u64(offset);
  }
  gguf_text& data(std::size_t size) {
    bytes.resize((bytes.size() + 31) / 32 * 32 + size, '\1');
    return *this;
  }

  std::string bytes;
};

constexpr std::uint32_t f32 = 0;
constexpr std::uint32_t f16 = 1;
constexpr std::uint32_t q4_k = 12;

gguf_content parsed_gguf(std::string_view content) {
  return read_gguf("x.gguf", std::as_bytes(std::span(content)));
}

std::string gguf_refusal(const gguf_text& text) {
  return file_error_of([&] { parsed_gguf(text.bytes); });
}

std::string small_gguf() {
  return gguf_text(2, 3)
      .pair("general.name", gguf_kind::text)
      .text("a model")
      .pair("list", gguf_kind::array)
      .u32(static_cast<std::uint32_t>(gguf_kind::text))
      .u64(2)
      .text("one")
      .text("")
      .pair("count", gguf_kind::u32)
      .u32(7)
      .tensor("b", {3}, f16, 32)
      .tensor("a", {2, 1}, f32, 0)
      .data(38)
      .bytes;
}

std::filesystem::path gguf_fixture(const std::string& name) {
  return std::filesystem::path(RESSVD_LLM_FIXTURES) / "gguf" / (name + ".gguf");
}

} // namespace

TEST_CASE("a GGUF file is read in the order of its data", "[gguf]") {
  const std::string content = small_gguf();
  const gguf_content file = parsed_gguf(content);
  REQUIRE(file.tensors.size() == 2);
  CHECK(file.tensors[0].name == "a");
  CHECK(file.tensors[0].type == "F32");
  CHECK(file.tensors[0].shape == std::vector<std::int64_t>{1, 2});
  CHECK(file.tensors[1].name == "b");
  CHECK(reinterpret_cast<const char*>(file.tensors[1].data.data()) ==
        content.data() + content.size() - 6);
  CHECK(file.tensors[1].data.size() == 6);
  CHECK(file.metadata.text("general.name") == "a model");
  CHECK(file.metadata.texts("list") == std::vector<std::string>{"one", ""});
  CHECK(file.metadata.integer("count") == 7);
  CHECK(file.metadata.number("count") == 7.0);
  CHECK(!file.metadata.text("missing"));
  CHECK(parsed_gguf(gguf_text(0, 0, 2).bytes).tensors.empty());
}

TEST_CASE("numbers of every kind are read from a GGUF file", "[gguf]") {
  const float single = 1e-5f;
  gguf_text text(0, 10);
  text.pair("u8", gguf_kind::u8).raw("\xff");
  text.pair("i8", gguf_kind::i8).raw("\xff");
  text.pair("u16", gguf_kind::u16).raw("\xff\xff");
  text.pair("i16", gguf_kind::i16).raw("\xff\xff");
  text.pair("i32", gguf_kind::i32).u32(0xffffffffu);
  text.pair("u64", gguf_kind::u64).u64(~std::uint64_t{0});
  text.pair("f32", gguf_kind::f32).raw(bytes_of(std::vector{single}));
  text.pair("f64", gguf_kind::f64).raw(bytes_of(std::vector{0.1}));
  text.pair("flag", gguf_kind::boolean).raw("\1");
  text.pair("inf", gguf_kind::f32).u32(0x7f800000u);
  const gguf_content file = parsed_gguf(text.bytes);
  CHECK(file.metadata.integer("u8") == 255);
  CHECK(file.metadata.integer("i8") == -1);
  CHECK(file.metadata.integer("u16") == 65535);
  CHECK(file.metadata.integer("i16") == -1);
  CHECK(file.metadata.integer("i32") == -1);
  CHECK_THAT(file_error_of([&] { file.metadata.integer("u64"); }),
             contains_text("x.gguf: key 'u64' is too large"));
  CHECK(file.metadata.number("f32") == 1e-5);
  CHECK(file.metadata.number("f64") == 0.1);
  CHECK(file.metadata.flag("flag") == true);
  CHECK_THAT(file_error_of([&] { file.metadata.number("inf"); }),
             contains_text("key 'inf' is not finite"));
  CHECK_THAT(file_error_of([&] { file.metadata.integer("f32"); }),
             contains_text("key 'f32' is not an integer"));
  CHECK_THAT(file_error_of([&] { file.metadata.text("flag"); }), contains_text("of another kind"));
}

TEST_CASE("a GGUF file cut anywhere is refused", "[gguf]") {
  const std::string content = small_gguf();
  for (std::size_t size = 0; size < content.size(); ++size) {
    CAPTURE(size);
    CHECK_THAT(file_error_of([&] { parsed_gguf(content.substr(0, size)); }),
               contains_text("x.gguf: "));
  }
  // The last tensor may be filled up to the alignment, and no further.
  CHECK(parsed_gguf(content + std::string(26, '\0')).tensors.size() == 2);
  CHECK_THAT(file_error_of([&] { parsed_gguf(content + std::string(27, '\0')); }),
             contains_text("27 bytes follow the data of the last tensor"));
}

TEST_CASE("other versions and byte orders of GGUF are refused by name", "[gguf]") {
  CHECK_THAT(gguf_refusal(gguf_text(0, 0, 1)), contains_text("version 1 of GGUF is not supported"));
  CHECK_THAT(gguf_refusal(gguf_text(0, 0, 4)), contains_text("version 4 of GGUF"));
  CHECK_THAT(gguf_refusal(gguf_text(0, 0, 0x03000000u)), contains_text("big-endian"));
  CHECK_THAT(file_error_of([] { parsed_gguf("GGML and more"); }),
             contains_text("is not a GGUF file"));
}

TEST_CASE("counts and lengths beyond the GGUF file are refused before memory is taken", "[gguf]") {
  for (const std::uint64_t lie : {std::uint64_t{1} << 40, ~std::uint64_t{0}}) {
    CHECK_THAT(gguf_refusal(gguf_text(lie, 0)), contains_text("the name of a tensor"));
    CHECK_THAT(gguf_refusal(gguf_text(0, lie)), contains_text("a key at byte 24"));
    CHECK_THAT(gguf_refusal(gguf_text(0, 1).u64(lie).raw("key")),
               contains_text("needs " + std::to_string(lie) + " bytes of the 3 that follow"));
    const auto array = [&](gguf_kind kind) {
      return gguf_text(0, 1)
          .pair("k", gguf_kind::array)
          .u32(static_cast<std::uint32_t>(kind))
          .u64(lie);
    };
    CHECK_THAT(gguf_refusal(array(gguf_kind::text)), contains_text("a text at byte"));
    CHECK_THAT(gguf_refusal(array(gguf_kind::u8)), contains_text("a value at byte"));
  }
  CHECK_THAT(gguf_refusal(gguf_text(0, 1)
                              .pair("k", gguf_kind::array)
                              .u32(static_cast<std::uint32_t>(gguf_kind::f64))
                              .u64(std::uint64_t{1} << 61)),
             contains_text("key 'k' has a length that overflows"));
}

TEST_CASE("malformed pairs of a GGUF file are refused", "[gguf]") {
  CHECK_THAT(gguf_refusal(gguf_text(0, 1).text("k").u32(13).u64(0)),
             contains_text("key 'k' has a value of unknown kind 13"));
  CHECK_THAT(gguf_refusal(gguf_text(0, 1).pair("k", gguf_kind::array).u32(9).u64(0)),
             contains_text("key 'k' is an array of arrays"));
  CHECK_THAT(gguf_refusal(
                 gguf_text(0, 2).pair("k", gguf_kind::u32).u32(1).pair("k", gguf_kind::u32).u32(2)),
             contains_text("key 'k' occurs twice"));
  for (const std::uint32_t alignment : {0u, 3u, 48u, 1u << 21}) {
    CHECK_THAT(
        gguf_refusal(gguf_text(0, 1).pair("general.alignment", gguf_kind::u32).u32(alignment)),
        contains_text("is no power of two up to 2^20"));
  }
  CHECK_THAT(gguf_refusal(gguf_text(0, 1).text(std::string("\n\x1b[2J")).u32(99).u64(0)),
             contains_text("key '\\x0a\\x1b[2J'"));
}

TEST_CASE("malformed tensors of a GGUF file are refused", "[gguf]") {
  const auto one = [](const std::vector<std::uint64_t>& extents, std::uint32_t type,
                      std::uint64_t offset, std::size_t data) {
    return gguf_refusal(gguf_text(1, 0).tensor("a", extents, type, offset).data(data));
  };
  CHECK_THAT(one({2, 1}, 57, 0, 8), contains_text("tensor a: unknown element type 57"));
  CHECK_THAT(one({1, 1, 1, 1, 1}, f32, 0, 4), contains_text("tensor a: has 5 dimensions"));
  CHECK_THAT(one({~std::uint64_t{0}}, f32, 0, 4), contains_text("a size beyond 63 bits"));
  for (const auto& extents :
       std::vector<std::vector<std::uint64_t>>{{std::uint64_t{1} << 32, std::uint64_t{1} << 32},
                                               {std::uint64_t{1} << 62, 4},
                                               {std::uint64_t{1} << 62},
                                               {65536, 65536, 65536, 65536}}) {
    CHECK_THAT(one(extents, f32, 0, 4), contains_text("the product of its shape overflows"));
  }
  CHECK_THAT(one({128, 2}, q4_k, 0, 144),
             contains_text("its rows of 128 elements are no whole blocks of Q4_K"));
  CHECK_THAT(one({2}, f32, 16, 24), contains_text("are not aligned to 32"));
  CHECK_THAT(one({2}, f32, 32, 40), contains_text("no tensor covers the 32 bytes before its"));
  CHECK_THAT(one({2}, f32, 0, 7), contains_text("reach beyond the 7 of the file (truncated?)"));
  CHECK_THAT(one({2}, f32, ~std::uint64_t{31}, 8), contains_text("reach beyond the 8"));
  CHECK_THAT(
      gguf_refusal(gguf_text(2, 0).tensor("a", {9}, f32, 0).tensor("b", {2}, f32, 32).data(40)),
      contains_text("tensor b: its 8 bytes of data at offset 32 overlap those of tensor a"));
  CHECK_THAT(
      gguf_refusal(gguf_text(2, 0).tensor("a", {1}, f32, 0).tensor("a", {1}, f32, 32).data(36)),
      contains_text("tensor 'a' occurs twice"));
}

TEST_CASE("a damaged GGUF file is read correctly or refused", "[gguf]") {
  const std::string good = small_gguf();
  std::mt19937 random{12};
  std::uniform_int_distribution<std::size_t> place{0, good.size() - 1};
  std::uniform_int_distribution<int> byte{0, 255};
  int refused = 0;
  for (int trial = 0; trial < 20000; ++trial) {
    std::string damaged = good;
    for (int change = 0; change <= trial % 3; ++change)
      damaged[place(random)] = static_cast<char>(byte(random));
    try {
      for (const ressvd_llm::stored_tensor& tensor : parsed_gguf(damaged).tensors) {
        const auto* const first = reinterpret_cast<const char*>(tensor.data.data());
        REQUIRE(first >= damaged.data());
        REQUIRE(first + tensor.data.size() <= damaged.data() + damaged.size());
      }
    } catch (const ressvd_llm::file_error&) {
      ++refused;
    }
  }
  CHECK(refused > 0);
}

TEST_CASE("what is written as GGUF is read back", "[gguf]") {
  ressvd_llm::gguf_pairs pairs;
  pairs.text("text", "words");
  pairs.u32("number", 3);
  pairs.f32("real", 0.25f);
  pairs.flag("flag", false);
  const std::string other = small_gguf();
  const gguf_content source = parsed_gguf(other);
  pairs.copy(*source.metadata.find("list"));
  const std::vector<ressvd_llm::gguf_tensor> tensors = {
      {"first", ressvd_llm::dtype::f16, {3}, 6}, {"second", ressvd_llm::dtype::q8_0, {2, 32}, 68}};
  const std::string file = ressvd_llm::gguf_header(pairs, tensors) + std::string(6 + 26 + 68, 'd');
  const gguf_content content = parsed_gguf(file);
  CHECK(content.metadata.text("text") == "words");
  CHECK(content.metadata.integer("number") == 3);
  CHECK(content.metadata.number("real") == 0.25);
  CHECK(content.metadata.flag("flag") == false);
  CHECK(content.metadata.texts("list") == source.metadata.texts("list"));
  REQUIRE(content.tensors.size() == 2);
  CHECK(content.tensors[1].name == "second");
  CHECK(content.tensors[1].type == "Q8_0");
  CHECK(content.tensors[1].shape == std::vector<std::int64_t>{2, 32});
}

TEST_CASE("names of GGUF and of checkpoints are each other's", "[gguf]") {
  using ressvd_llm::model_family;
  const auto checkpoint_name = [](const std::string& name, model_family family) {
    return ressvd_llm::checkpoint_name(family, name);
  };
  const model_family llama = model_family::llama;
  CHECK(checkpoint_name("blk.12.attn_output.weight", llama) ==
        "model.layers.12.self_attn.o_proj.weight");
  CHECK(checkpoint_name("output_norm.weight", llama) == "model.norm.weight");
  CHECK(checkpoint_name("blk.0.attn_q.bias", llama) == "model.layers.0.self_attn.q_proj.bias");
  for (const char* const name : {"other", "blk", "blk.", "blk.1", "blk.1.weight", "", ".",
                                 "blk.1.other.weight", "model.layers.0.weight"}) {
    CHECK(checkpoint_name(name, llama) == name);
    CHECK(ressvd_llm::gguf_name(llama, name) == name);
  }
  // Of the same norm in two families, and of one name in three.
  CHECK(checkpoint_name("blk.1.ffn_norm.weight", llama) ==
        "model.layers.1.post_attention_layernorm.weight");
  CHECK(checkpoint_name("blk.1.ffn_norm.weight", model_family::gemma2) ==
        "model.layers.1.pre_feedforward_layernorm.weight");
  CHECK(checkpoint_name("blk.1.post_attention_norm.weight", model_family::gemma3) ==
        "model.layers.1.post_attention_layernorm.weight");
  CHECK(checkpoint_name("blk.1.ffn_up.weight", model_family::phi3) ==
        "model.layers.1.mlp.gate_up_proj.weight");
  CHECK(ressvd_llm::gguf_name(model_family::phi3, "model.layers.1.mlp.up_proj.weight") ==
        "blk.1.ffn_up.weight");
  for (const char* const model : {"llama", "qwen2", "qwen3", "gemma2", "gemma3"}) {
    const auto directory = std::filesystem::path(RESSVD_LLM_FIXTURES) / model;
    const model_family family = ressvd_llm::read_config(directory).family;
    for (const std::string& name : ressvd_llm::checkpoint::open(directory).names()) {
      CHECK(ressvd_llm::gguf_name(family, name) != name);
      CHECK(checkpoint_name(ressvd_llm::gguf_name(family, name), family) == name);
    }
  }
}

TEST_CASE("the tensor of all experts has a part of each, by their checkpoint's names", "[gguf]") {
  using ressvd_llm::expert_part;
  ressvd_llm::model_config config;
  config.family = ressvd_llm::model_family::qwen3_moe;
  const std::string whole = ressvd_llm::checkpoint_name(config.family, "blk.3.ffn_up_exps.weight");
  CHECK(expert_part(config, whole, 7) == "model.layers.3.mlp.experts.7.up_proj.weight");
  config.family = ressvd_llm::model_family::mixtral;
  CHECK(expert_part(config, whole, 7) == "model.layers.3.block_sparse_moe.experts.7.w3.weight");
  CHECK(ressvd_llm::name_in(
            config, ressvd_llm::checkpoint_name(config.family, "blk.3.ffn_gate_inp.weight")) ==
        "model.layers.3.block_sparse_moe.gate.weight");
  CHECK(ressvd_llm::gguf_name(config.family, "model.layers.3.block_sparse_moe.gate.weight") ==
        "blk.3.ffn_gate_inp.weight");
  CHECK(ressvd_llm::stacked_gguf_name(3, "up") == "blk.3.ffn_up_exps.weight");
  for (const char* const other : {"", "a.mlp.experts.", "a.mlp.experts.up_proj", "blk.3.ffn_up"})
    CHECK(expert_part(config, other, 7).empty());
}

TEST_CASE("the tokenizer of a GGUF file is read", "[gguf]") {
  const auto tokenizer_in = [](const std::string& name) {
    const ressvd_llm::mapped_file file(gguf_fixture(name));
    return ressvd_llm::read_gguf_tokenizer(read_gguf(name, file.bytes()).metadata);
  };
  const auto bpe = tokenizer_in("qwen2");
  REQUIRE(bpe);
  CHECK(bpe->model == "gpt2");
  CHECK(bpe->pre == "smollm");
  REQUIRE(bpe->tokens.size() == 80);
  CHECK(bpe->tokens[79] == "token79");
  CHECK(bpe->kinds[2] == ressvd_llm::gguf_token_kind::control);
  CHECK(bpe->kinds[3] == ressvd_llm::gguf_token_kind::normal);
  CHECK(bpe->merges == std::vector<std::string>{"a b", "ab c"});
  CHECK(bpe->scores.empty());
  CHECK(bpe->bos == 1);
  CHECK(bpe->eos == 2);
  CHECK(!bpe->unknown);
  CHECK(bpe->add_bos == false);
  const auto pieces = tokenizer_in("llama");
  REQUIRE(pieces);
  CHECK(pieces->model == "llama");
  CHECK(pieces->pre == "default");
  CHECK(pieces->scores[3] == -1.5f);
  CHECK(pieces->merges.empty());
  CHECK(pieces->unknown == 0);
  CHECK(pieces->add_bos == true);
  CHECK(!tokenizer_in("blocks"));
}

TEST_CASE("a tokenizer whose parts do not fit is refused", "[gguf]") {
  const auto refusal = [](const auto& add, std::uint64_t pairs) {
    gguf_text text(0, pairs + 2);
    text.pair("tokenizer.ggml.model", gguf_kind::text).text("gpt2");
    text.pair("tokenizer.ggml.tokens", gguf_kind::array).u32(8).u64(2).text("a").text("b");
    add(text);
    return file_error_of(
        [&] { ressvd_llm::read_gguf_tokenizer(parsed_gguf(text.bytes).metadata); });
  };
  CHECK(refusal([](gguf_text&) {}, 0) == "no exception");
  CHECK_THAT(
      refusal([](gguf_text& t) { t.pair("tokenizer.ggml.bos_token_id", gguf_kind::u32).u32(2); },
              1),
      contains_text("key 'tokenizer.ggml.bos_token_id' (2) is outside the 2 tokens"));
  CHECK_THAT(refusal(
                 [](gguf_text& t) {
                   t.pair("tokenizer.ggml.scores", gguf_kind::array).u32(6).u64(1).u32(0);
                 },
                 1),
             contains_text("has 1 values for 2 tokens"));
  CHECK_THAT(
      refusal(
          [](gguf_text& t) {
            t.pair("tokenizer.ggml.token_type", gguf_kind::array).u32(5).u64(2).u32(1).u32(7);
          },
          1),
      contains_text("unknown kind 7"));
  CHECK_THAT(refusal(
                 [](gguf_text& t) {
                   t.pair("tokenizer.ggml.merges", gguf_kind::array).u32(5).u64(1).u32(1);
                 },
                 1),
             contains_text("of another kind"));
}
