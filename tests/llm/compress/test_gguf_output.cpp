// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "compress/compress.hpp"
#include "compress/write_checkpoint.hpp"
#include "io/checkpoint_writer.hpp"
#include "io/error.hpp"
#include "io/gguf.hpp"
#include "io/gguf_model.hpp"
#include "io/mapped_file.hpp"
#include "llm/compress/short_compression.hpp"
#include "llm/io/temporary.hpp"
#include "llm/model/fixture.hpp"
#include "support/catch.hpp"

namespace ressvd_llm {
namespace {

using llm_test::temporary_directory;
using testing::fixture;
using testing::relative_error;
using testing::short_compression;

const std::vector<std::string> gguf_families = {
    "llama", "llama3", "llama_linear", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "mixtral"};

std::vector<float> logits_from(const std::filesystem::path& model, const fixture& f) {
  return testing::run(language_model::open(model), f.tokens, f.window());
}

compress_options to_gguf_file(const std::filesystem::path& model,
                              const std::filesystem::path& output) {
  auto o = short_compression(model, output);
  o.format = output_format::gguf;
  return o;
}

std::filesystem::path gguf_model(const std::string& name) {
  return std::filesystem::path(RESSVD_LLM_FIXTURES) / "gguf" / (name + ".gguf");
}

} // namespace

TEST_CASE("A GGUF output has the logits of the dense output", "[gguf]") {
  for (const std::string& family : gguf_families) {
    INFO(family);
    const fixture f(family);
    const temporary_directory dir;
    const auto directory = testing::usual_in_gguf(f, dir / "model");
    auto dense = short_compression(directory, dir / "dense");
    dense.format = output_format::dense;
    const auto expected = compress(dense);
    const auto o = to_gguf_file(directory, dir / "out.gguf");
    const auto report = compress(o);
    CHECK(report.achieved_ratio == expected.achieved_ratio);
    CHECK(report.without_tokenizer);
    CHECK(!std::filesystem::exists(dir / "out.gguf.partial"));
    REQUIRE(report.heldout);
    CHECK(report.heldout->compressed_perplexity ==
          Approx(expected.heldout->compressed_perplexity).epsilon(1e-5));
    // The factors of Llama 3's rotary embedding are rounded to single precision, and so are Gemma's
    // norms plus one.
    const bool exact = family != "llama3" && !f.config.norms_around_zero;
    CHECK(relative_error(logits_from(o.output, f), logits_from(dense.output, f)) <=
          (exact ? 0 : 1e-5));
    const model_config config = read_config(o.output);
    CHECK(config.family == f.config.family);
    CHECK(config.tied_embeddings == f.config.tied_embeddings);
    REQUIRE(config.compressed);
    CHECK(config.compressed->format == "dense");
    CHECK(config.compressed->ratio == report.achieved_ratio);
    CHECK(checkpoint::open(o.output).names() == checkpoint::open(dense.output).names());
  }
}

TEST_CASE("A mixture goes into a GGUF file, out of it and on as it is", "[gguf][mixture]") {
  const fixture f("mixtral");
  const temporary_directory dir;
  auto o = to_gguf_file(f.directory, dir / "first.gguf");
  o.ratio = 0;
  o.type = dtype::q8_0;
  compress(o);
  CHECK(relative_error(logits_from(o.output, f), logits_from(f.directory, f)) < 0.05);
  const mapped_file before(o.output);
  const gguf_content first = read_gguf(o.output, before.bytes());
  CHECK(first.metadata.text("general.architecture") == "llama");
  CHECK(first.metadata.integer("llama.expert_count") == 4);
  CHECK(first.metadata.integer("llama.expert_used_count") == 2);
  const auto tensor = [](const gguf_content& content, const std::string& name) {
    return *std::ranges::find(content.tensors, name, &stored_tensor::name);
  };
  CHECK(tensor(first, "blk.1.ffn_up_exps.weight").shape == std::vector<std::int64_t>{4, 24, 32});
  CHECK(tensor(first, "blk.1.ffn_up_exps.weight").type == "Q8_0");
  CHECK(tensor(first, "blk.1.ffn_down_exps.weight").type == "F16"); // rows of 24
  CHECK(tensor(first, "blk.1.ffn_gate_inp.weight").type == "F32");
  // Without a change the same bytes; some of a layer's experts compressed leaves the others.
  o.model = o.output;
  o.type.reset();
  o.output = dir / "second.gguf";
  compress(o);
  const mapped_file after(o.output);
  const gguf_content second = read_gguf(o.output, after.bytes());
  REQUIRE(first.tensors.size() == second.tensors.size());
  for (const stored_tensor& a : first.tensors) {
    INFO(a.name);
    const stored_tensor b = tensor(second, a.name);
    CHECK((a.type == b.type && a.shape == b.shape && std::ranges::equal(a.data, b.data)));
  }
  o.ratio = 0.3;
  o.output = dir / "third.gguf";
  o.type = dtype::f32;
  o.allocation = allocation::fisher;
  o.method = "kfac-svd";
  compress(o);
  auto dense = o;
  dense.format = output_format::dense;
  dense.output = dir / "dense";
  compress(dense);
  CHECK(relative_error(logits_from(o.output, f), logits_from(dense.output, f)) == 0);
}

TEST_CASE("A mixture of Qwen3 in GGUF has the logits of its directory", "[gguf][mixture]") {
  // Mixtral's tensors under the names of Qwen3-MoE, and norms of q and k.
  const fixture f("mixtral");
  const temporary_directory dir;
  const auto model = dir / "qwen3_moe";
  {
    checkpoint_writer writer(model, f.directory);
    const checkpoint source = checkpoint::open(f.directory);
    const auto replace = [](std::string text, const std::string& from, const std::string& to) {
      const std::size_t at = text.find(from);
      return at == std::string::npos ? text : text.replace(at, from.size(), to);
    };
    for (const std::string& name : source.names()) {
      tensor_view tensor = source.at(name);
      tensor.name = replace(name, "block_sparse_moe", "mlp");
      tensor.name = replace(tensor.name, ".w1.", ".gate_proj.");
      tensor.name = replace(tensor.name, ".w2.", ".down_proj.");
      tensor.name = replace(tensor.name, ".w3.", ".up_proj.");
      writer.add(tensor);
    }
    for (std::int64_t layer = 0; layer < f.config.layers; ++layer)
      for (const char* const part : {"q", "k"})
        writer.add("model.layers." + std::to_string(layer) + ".self_attn." + part + "_norm.weight",
                   {f.config.head_dim}, testing::random_values(f.config.head_dim, 3), dtype::f32);
    auto config = nlohmann::ordered_json::parse(f.config.text);
    config["architectures"] = {"Qwen3MoeForCausalLM"};
    config["model_type"] = "qwen3_moe";
    config["moe_intermediate_size"] = config["intermediate_size"];
    config["norm_topk_prob"] = true;
    writer.add_file("config.json", config.dump());
    writer.commit();
  }
  auto o = to_gguf_file(model, dir / "out.gguf");
  compress(o);
  CHECK(read_config(o.output).family == model_family::qwen3_moe);
  auto dense = short_compression(model, dir / "dense");
  dense.format = output_format::dense;
  compress(dense);
  CHECK(relative_error(logits_from(o.output, f), logits_from(dense.output, f)) == 0);
}

TEST_CASE("Mixtures that GGUF does not have, and files that contradict themselves, are refused",
          "[gguf][mixture]") {
  const temporary_directory dir;
  const fixture qwen("qwen3_moe");
  CHECK_THROWS_WITH(compress(to_gguf_file(qwen.directory, dir / "qwen.gguf")),
                    contains_text("norm_topk_prob"));
  const fixture f("mixtral");
  auto o = to_gguf_file(f.directory, dir / "whole.gguf");
  o.ratio = 0;
  compress(o);
  const mapped_file file(o.output);
  const gguf_content content = read_gguf(o.output, file.bytes());
  const auto rewritten = [&](const model_config& config, bool flat, const std::string& name) {
    checkpoint_writer writer(dir / name, o.output, {.gguf = true});
    for (const stored_tensor& tensor : content.tensors) {
      tensor_view view{tensor.name, *parse_dtype(tensor.type), tensor.shape, tensor.data.data()};
      if (flat && view.shape.size() == 3)
        view.shape = {view.shape[0] * view.shape[1], view.shape[2]};
      writer.add(view);
    }
    writer.describe(describe_for_gguf(config));
    writer.commit();
    return dir / name;
  };
  model_config fewer = f.config;
  fewer.experts = 3;
  CHECK_THROWS_WITH(checkpoint::open(rewritten(fewer, false, "fewer.gguf")),
                    contains_text("is not that of 3 experts' matrices"));
  CHECK_THROWS_WITH(checkpoint::open(rewritten(f.config, true, "flat.gguf")),
                    contains_text("is not that of 4 experts' matrices"));
  model_config none = f.config;
  none.experts = 0;
  CHECK_THROWS(language_model::open(rewritten(none, false, "none.gguf")));
}

TEST_CASE("Ratio 0 from GGUF to GGUF keeps every tensor and pair as it is", "[gguf]") {
  for (const char* const name :
       {"llama", "llama3", "llama_linear", "qwen2", "qwen3", "gemma2", "gemma3"}) {
    INFO(name);
    const temporary_directory dir;
    auto o = to_gguf_file(gguf_model(name), dir / "out.gguf");
    o.ratio = 0;
    o.type.reset();
    CHECK(!compress(o).without_tokenizer);
    const mapped_file before(o.model);
    const mapped_file after(o.output);
    const gguf_content a = read_gguf(o.model, before.bytes());
    const gguf_content b = read_gguf(o.output, after.bytes());
    for (const gguf_value& value : a.metadata.values()) {
      if (value.key == "general.quantization_version") continue;
      INFO(value.key);
      const gguf_value* const copy = b.metadata.find(value.key);
      REQUIRE(copy != nullptr);
      CHECK(std::equal(value.pair.begin(), value.pair.end(), copy->pair.begin(), copy->pair.end()));
    }
    REQUIRE(a.tensors.size() == b.tensors.size());
    for (const stored_tensor& tensor : a.tensors) {
      INFO(tensor.name);
      const auto copy = std::find_if(b.tensors.begin(), b.tensors.end(),
                                     [&](const auto& other) { return other.name == tensor.name; });
      REQUIRE(copy != b.tensors.end());
      CHECK(copy->type == tensor.type);
      CHECK(copy->shape == tensor.shape);
      CHECK(
          std::equal(tensor.data.begin(), tensor.data.end(), copy->data.begin(), copy->data.end()));
    }
  }
}

TEST_CASE("A model directory made of a GGUF file has its logits", "[gguf]") {
  for (const char* const name : {"llama", "llama3", "qwen2", "gemma2", "gemma3", "phi3"}) {
    INFO(name);
    const fixture f(name);
    const temporary_directory dir;
    auto o = short_compression(gguf_model(name), dir / "dense");
    o.format = output_format::dense;
    o.ratio = 0;
    compress(o);
    CHECK(relative_error(logits_from(o.output, f), logits_from(o.model, f)) <= 1e-6);
    // Quantised matrices become float16 where no type is asked for.
    o.output = dir / "factored";
    o.format = output_format::factored;
    o.type.reset();
    compress(o);
    CHECK(relative_error(logits_from(o.output, f), logits_from(o.model, f)) < 5e-3);
    // Some fixtures' tokenizers have no vocabulary that serves their merges.
    const bool served = std::string(name) != "llama3" && std::string(name) != "qwen2";
    CHECK(std::filesystem::exists(o.output / "tokenizer.json") == served);
    if (!served) continue;
    const std::string text = "It was so, and 12 more.";
    CHECK(open_tokenizer(o.output, f.config)->encode(text) ==
          open_tokenizer(o.model, f.config)->encode(text));
  }
}

TEST_CASE("A GGUF output has the types that were asked for", "[gguf]") {
  const fixture f("llama");
  const temporary_directory dir;
  const auto exact = to_gguf_file(f.directory, dir / "f32.gguf");
  compress(exact);
  const auto expected = logits_from(exact.output, f);
  const struct {
    dtype type;
    std::int64_t file_type;
    double bound;
  } cases[] = {
      {dtype::f16, 1, 5e-3}, {dtype::bf16, 32, 0.05}, {dtype::q8_0, 7, 0.1}, {dtype::q4_0, 2, 1.0}};
  for (const auto& c : cases) {
    auto o = exact;
    o.output = dir / (std::string(name_of(c.type)) + ".gguf");
    o.type = c.type;
    compress(o);
    CHECK(relative_error(logits_from(o.output, f), expected) < c.bound);
    const mapped_file file(o.output);
    const gguf_content content = read_gguf(o.output, file.bytes());
    CHECK(content.metadata.integer("general.file_type") == c.file_type);
    for (const stored_tensor& tensor : content.tensors) {
      const bool blocks = tensor.shape.back() % 32 == 0;
      const std::string type = tensor.shape.size() < 2           ? "F32"
                               : is_quantised(c.type) && !blocks ? "F16"
                                                                 : std::string(name_of(c.type));
      CHECK(tensor.type == type);
    }
  }
}

TEST_CASE("GGUF is refused for what it has no word for", "[gguf]") {
  const temporary_directory dir;
  const auto refusal = [](const compress_options& o) {
    return llm_test::message_of<usage_error>([&] { compress(o); });
  };
  CHECK_THAT(refusal(to_gguf_file(fixture("opt").directory, dir / "opt.gguf")),
             contains_text("GGUF has no architecture for models of the family opt"));
  CHECK_THAT(refusal(to_gguf_file(fixture("gemma3").directory, dir / "gemma.gguf")),
             contains_text("Gemma whose query_pre_attn_scalar is not 12"));
  auto o = short_compression(fixture("llama").directory, dir / "out");
  o.type = dtype::q8_0;
  CHECK_THAT(refusal(o), contains_text("--dtype Q8_0 goes with --format gguf"));
  llm_test::write(dir / "there.gguf", "a file");
  CHECK_THAT(refusal(to_gguf_file(fixture("llama").directory, dir / "there.gguf")),
             contains_text("there.gguf: exists"));
  CHECK(llm_test::read(dir / "there.gguf") == "a file");
  CHECK(!std::filesystem::exists(dir / "there.gguf.partial"));
  CHECK(!std::filesystem::exists(dir / "opt.gguf"));
}

TEST_CASE("A tensor beyond the model's layers that has no whole heads is refused", "[gguf]") {
  const fixture f("llama");
  const temporary_directory dir;
  std::filesystem::copy(f.directory, dir / "model");
  const std::string file = llm_test::read(f.directory / "model.safetensors");
  std::uint64_t length = 0;
  std::memcpy(&length, file.data(), sizeof length);
  auto header = nlohmann::json::parse(file.substr(8, length));
  const std::string data = file.substr(8 + length);
  const std::string name = "model.layers.9.self_attn.q_proj.weight";
  header[name] = {
      {"dtype", "F32"}, {"shape", {5, 1}}, {"data_offsets", {data.size(), data.size() + 20}}};
  llm_test::write(dir / "model" / "model.safetensors",
                  llm_test::safetensors(header.dump(), data + std::string(20, '\0')));
  auto o = to_gguf_file(dir / "model", dir / "out.gguf");
  o.ratio = 0;
  CHECK_THAT(llm_test::file_error_of([&] { compress(o); }),
             contains_text(name + ": 5 rows are no whole heads of 8"));
}

TEST_CASE("A compressed checkpoint is converted to its dense form", "[gguf]") {
  for (const char* const family : {"llama", "qwen2"}) {
    for (const auto form : {ressvd::factored_form::pair, ressvd::factored_form::pivoted}) {
      INFO(family << ", " << name_of(form));
      const fixture f(family);
      const temporary_directory dir;
      auto o = short_compression(f.directory, dir / "factored");
      o.form = form;
      compress(o);
      compress_options conversion;
      conversion.model = o.output;
      conversion.output = dir / "out.gguf";
      conversion.format = output_format::gguf;
      const language_model model = language_model::open(o.output);
      checkpoint_writer writer(conversion.output, conversion.model, {.gguf = true});
      write_converted(writer, model, conversion);
      writer.commit();
      CHECK(relative_error(logits_from(conversion.output, f), logits_from(o.output, f)) <
            testing::rounding);
      CHECK(checkpoint::open(conversion.output).names() == checkpoint::open(f.directory).names());
      const model_config config = read_config(conversion.output);
      REQUIRE(config.compressed);
      CHECK(config.compressed->format == "dense");
      CHECK(config.compressed->ranks == read_config(o.output).compressed->ranks);
    }
  }
}

TEST_CASE("Phi-3 comes out as Mistral, its fused matrices apart", "[gguf]") {
  const fixture f("phi3");
  const temporary_directory dir;
  for (const output_format format : {output_format::dense, output_format::gguf}) {
    auto o = short_compression(f.directory, dir / ("out" + std::string(name_of(format))));
    o.format = format;
    o.ratio = 0;
    compress(o);
    const model_config config = read_config(o.output);
    CHECK(config.family == model_family::mistral);
    CHECK(config.sliding_window == f.config.sliding_window);
    CHECK(relative_error(logits_from(o.output, f), logits_from(f.directory, f)) == 0);
  }
  // So does a GGUF file with fused matrices, whose rows of q and k change places bit by bit.
  auto again = to_gguf_file(gguf_model("phi3"), dir / "again.gguf");
  again.ratio = 0;
  again.type.reset();
  compress(again);
  CHECK(relative_error(logits_from(again.output, f), logits_from(f.directory, f)) == 0);
  const mapped_file file(again.output);
  const gguf_content content = read_gguf(again.output, file.bytes());
  CHECK(content.metadata.text("general.architecture") == "llama");
  CHECK(content.metadata.text("general.name") == "phi3");
  CHECK(content.metadata.integer("llama.attention.sliding_window") == 9);
  CHECK(content.metadata.find("phi3.block_count") == nullptr);
  for (const stored_tensor& tensor : content.tensors)
    CHECK(tensor.type == (tensor.shape.size() < 2 ? "F32" : "BF16"));

  auto o = short_compression(f.directory, dir / "factored");
  const auto report = compress(o);
  CHECK(report.achieved_ratio > 0.3);
  CHECK(checkpoint::open(o.output).contains("model.layers.0.self_attn.o_proj.weight") ==
        !read_config(o.output).compressed->ranks.contains("model.layers.0.self_attn.o_proj"));
  CHECK(read_config(o.output).compressed->ranks.contains("model.layers.0.mlp.gate_proj"));
}

} // namespace ressvd_llm
