// SPDX-License-Identifier: Apache-2.0
#include "compress/correct.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "compress/compress.hpp"
#include "io/error.hpp"
#include "io/gguf.hpp"
#include "io/gguf_model.hpp"
#include "io/mapped_file.hpp"
#include "io/tensor.hpp"
#include "llm/compress/short_compression.hpp"
#include "llm/io/temporary.hpp"
#include "llm/model/fixture.hpp"
#include "support/catch.hpp"

namespace ressvd_llm {
namespace {

using llm_test::temporary_directory;
using testing::fixture;
using testing::short_compression;

// The fixture in Q4_0 at base.gguf.
correct_options correction_of(const fixture& f, const temporary_directory& dir, std::int64_t rank) {
  auto o = short_compression(f.directory, dir / "base.gguf");
  o.format = output_format::gguf;
  o.type = dtype::q4_0;
  o.ratio = 0;
  compress(o);
  correct_options result{.base = o.output, .rank = rank, .run = o};
  result.run.output = dir / "adapter.gguf";
  result.run.format = output_format::factored;
  result.run.type.reset();
  return result;
}

struct adapter {
  explicit adapter(const std::filesystem::path& path)
      : file(path), content(read_gguf(path, file.bytes())) {}

  std::vector<float> values(const std::string& name) const {
    for (const stored_tensor& tensor : content.tensors) {
      if (tensor.name != name) continue;
      const tensor_view view{name, *parse_dtype(tensor.type), tensor.shape, tensor.data.data()};
      std::vector<float> result(static_cast<std::size_t>(view.elements()));
      decode_rows(view, 0, view.rows(), std::span(result));
      return result;
    }
    throw std::runtime_error("no tensor " + name);
  }

  mapped_file file;
  gguf_content content;
};

// The base with B·A added to its matrices, as llama.cpp would: on the rows as they lie in the file.
language_model applied(const std::filesystem::path& base, const adapter& a) {
  language_model model = language_model::open(base);
  for (std::int64_t layer = 0; layer < model.config().layers; ++layer) {
    layer_weights weights = model.layer(layer);
    for (const linear_module& m : linear_modules(model.config(), layer)) {
      const std::string name = gguf_name(model.config().family, m.weight_name());
      const auto v = a.values(name + ".lora_a");
      const auto u = a.values(name + ".lora_b");
      const auto rank = static_cast<std::int64_t>(v.size()) / m.in;
      const std::int64_t heads = interleaved_heads(model.config(), m.weight_name());
      linear& l = weights[m.place];
      std::vector<float> w = l.dense.values();
      for (std::int64_t i = 0; i < m.out; ++i) {
        for (std::int64_t j = 0; j < m.in; ++j) {
          double sum = 0;
          for (std::int64_t k = 0; k < rank; ++k) {
            sum +=
                static_cast<double>(u[static_cast<std::size_t>(stored_row(i, heads) * rank + k)]) *
                static_cast<double>(v[static_cast<std::size_t>(k * m.in + j)]);
          }
          w[static_cast<std::size_t>(i * m.in + j)] += static_cast<float>(sum);
        }
      }
      l = make_linear(weight_matrix(m.out, m.in, std::move(w)), l.bias);
    }
    model.replace_layer(layer, std::move(weights));
  }
  return model;
}

} // namespace

TEST_CASE("A correction of full rank gives the original's matrices back", "[correct]") {
  for (const char* const family : {"llama", "qwen3"}) {
    INFO(family);
    const fixture f(family);
    const temporary_directory dir;
    const correct_options o = correction_of(f, dir, 1000);
    const correction_report report = correct(o);
    const adapter a(o.run.output);
    CHECK(a.content.metadata.text("general.type") == "adapter");
    CHECK(a.content.metadata.text("general.architecture") == family);
    CHECK(a.content.metadata.text("adapter.type") == "lora");
    CHECK(a.content.metadata.number("adapter.lora.alpha") == 0.0);
    const language_model original = language_model::open(f.directory);
    const language_model corrected = applied(o.base, a);
    for (std::int64_t layer = 0; layer < f.config.layers; ++layer) {
      for (const linear_module& m : linear_modules(f.config, layer)) {
        INFO(m.prefix);
        CHECK(testing::relative_error(corrected.layer(layer)[m.place].dense.values(),
                                      original.layer(layer)[m.place].dense.values()) < 1e-5);
      }
    }
    REQUIRE(report.matrices.size() == 14);
    for (const corrected_matrix& m : report.matrices) {
      REQUIRE(m.remaining_loss);
      CHECK(*m.remaining_loss < 1e-6);
    }
    CHECK(report.bytes == std::filesystem::file_size(o.run.output));
    CHECK(!std::filesystem::exists(dir / "adapter.gguf.partial"));
  }
}

TEST_CASE("A correction brings a quantised model closer, the more the higher its rank",
          "[correct]") {
  const fixture f("llama");
  const temporary_directory dir;
  correct_options o = correction_of(f, dir, 4);
  const correction_report low = correct(o);
  o.rank = 16;
  o.run.output = dir / "higher.gguf";
  o.run.type = dtype::f16;
  const correction_report high = correct(o);
  REQUIRE(low.heldout.size() == 3);
  CHECK(low.heldout[0].divergence == 0);
  CHECK(low.heldout[2].divergence < low.heldout[1].divergence);
  CHECK(high.heldout[2].divergence < low.heldout[2].divergence);
  for (std::size_t i = 0; i < low.matrices.size(); ++i) {
    CHECK(*low.matrices[i].remaining_loss < 1);
    CHECK(*high.matrices[i].remaining_loss < *low.matrices[i].remaining_loss);
    CHECK(high.matrices[i].rank == 16);
  }
  // What was measured is what the file holds.
  const auto expected = testing::run(language_model::open(f.directory), f.tokens, f.window());
  const auto base = testing::run(language_model::open(o.base), f.tokens, f.window());
  const auto corrected = testing::run(applied(o.base, adapter(o.run.output)), f.tokens, f.window());
  CHECK(testing::relative_error(corrected, expected) < testing::relative_error(base, expected));
  CHECK(adapter(o.run.output).content.tensors.front().type == "F16");
}

TEST_CASE("A model is quantised, and what that loses put beside it", "[correct]") {
  const fixture f("llama");
  const temporary_directory dir;
  for (const dtype type : {dtype::q4_0, dtype::q8_0}) {
    auto run = short_compression(f.directory, dir / (std::string(name_of(type)) + ".gguf"));
    run.type = type;
    const correction_report report = quantise_and_correct(run, 8);
    const auto beside = dir / (std::string(name_of(type)) + ".lora.gguf");
    CHECK(report.base == run.output.string());
    CHECK(report.output == beside.string());
    CHECK(report.base_bytes == std::filesystem::file_size(run.output));
    CHECK(report.bytes == std::filesystem::file_size(beside));
    // The base is what --format gguf makes of the model.
    auto same = run;
    same.output = dir / "same.gguf";
    same.format = output_format::gguf;
    same.ratio = 0;
    compress(same);
    const checkpoint base = checkpoint::open(run.output);
    const checkpoint expected = checkpoint::open(same.output);
    REQUIRE(base.names() == expected.names());
    for (const std::string& name : base.names()) {
      INFO(name);
      const tensor_view& a = base.at(name);
      const tensor_view& b = expected.at(name);
      REQUIRE(a.bytes() == b.bytes());
      CHECK(std::memcmp(a.data, b.data, a.bytes()) == 0);
    }
    // The adapter is the one that correct makes, in float16.
    correct_options again{.base = run.output, .rank = 8, .run = run};
    again.run.output = dir / "again.gguf";
    again.run.type = dtype::f16;
    correct(again);
    CHECK(llm_test::read(beside) == llm_test::read(again.run.output));
    REQUIRE(report.heldout.size() == 3);
    CHECK(report.heldout[2].divergence < report.heldout[1].divergence);
    std::filesystem::remove(same.output);
    std::filesystem::remove(again.run.output);
  }
  CHECK(adapter_beside("a.b/model") == "a.b/model.lora.gguf");
  CHECK(adapter_beside("model.q4.gguf") == "model.q4.lora.gguf");
}

TEST_CASE("An adapter is refused before anything is written", "[correct]") {
  const fixture f("llama");
  const temporary_directory dir;
  auto good = short_compression(f.directory, dir / "out.gguf");
  good.type.reset();
  const auto refusal = [&](const auto& change) {
    auto run = good;
    change(run);
    const std::string message =
        llm_test::message_of<usage_error>([&] { quantise_and_correct(run, 4); });
    CHECK(!std::filesystem::exists(dir / "out.gguf"));
    CHECK(!std::filesystem::exists(dir / "out.gguf.partial"));
    CHECK(!std::filesystem::exists(dir / "out.lora.gguf.partial"));
    return message;
  };
  CHECK_THAT(refusal([](auto& run) { run.type = dtype::f16; }),
             contains_text("--dtype F16 leaves nothing to correct"));
  CHECK_THAT(refusal([](auto& run) { run.model = fixture("opt").directory; }),
             contains_text("GGUF has no architecture for models of the family opt"));
  auto factored = short_compression(f.directory, dir / "factored");
  compress(factored);
  CHECK_THAT(refusal([&](auto& run) { run.model = factored.output; }),
             contains_text("factored: is a factored checkpoint"));
  llm_test::write(dir / "out.lora.gguf", "a file");
  CHECK_THAT(refusal([](auto&) {}), contains_text("out.lora.gguf: exists"));
  CHECK(llm_test::read(dir / "out.lora.gguf") == "a file");
  std::filesystem::remove(dir / "out.lora.gguf");
  quantise_and_correct(good, 4);
  CHECK(checkpoint::open(good.output).describe("model.layers.0.self_attn.q_proj.weight").type ==
        "Q4_0");
}

TEST_CASE("What cannot be corrected is refused", "[correct]") {
  const fixture f("llama");
  const temporary_directory dir;
  const correct_options good = correction_of(f, dir, 4);
  const auto refusal = [&](const auto& change) {
    correct_options o = good;
    change(o);
    return llm_test::message_of<usage_error>([&] { correct(o); });
  };
  CHECK_THAT(refusal([&](auto& o) { o.base = f.directory; }), contains_text("is not a GGUF file"));
  CHECK_THAT(refusal([&](auto& o) { o.run.model = fixture("qwen2").directory; }),
             contains_text("base.gguf: model.layers.0.self_attn.k_proj has another shape than in"));
  CHECK_THAT(refusal([&](auto& o) { o.run.model = o.base; }),
             contains_text("nothing is to be corrected"));
  CHECK_THAT(refusal([&](auto& o) {
               o.base = std::filesystem::path(RESSVD_LLM_FIXTURES) / "gguf" / "phi3.gguf";
               o.run.model = fixture("phi3").directory;
             }),
             contains_text("phi3.gguf: fused matrices, as of Phi-3, cannot be corrected"));
  CHECK(!std::filesystem::exists(dir / "adapter.gguf"));
  CHECK(!std::filesystem::exists(dir / "adapter.gguf.partial"));
  // An adapter is no model.
  correct(good);
  CHECK_THAT(llm_test::file_error_of([&] { language_model::open(good.run.output); }),
             contains_text("a file of type 'adapter' is not supported"));
}

TEST_CASE("A matrix with a correction is their sum", "[linear]") {
  const auto values = [](std::int64_t count, unsigned seed) {
    return testing::random_values(count, seed);
  };
  const linear dense = make_linear(weight_matrix(6, 5, values(30, 1)), values(6, 2));
  const linear pair =
      make_linear(weight_matrix(6, 2, values(12, 3)), weight_matrix(2, 5, values(10, 4)), {});
  const linear sum = make_corrected_linear(dense, pair);
  CHECK(!sum.factored());
  CHECK(sum.out() == 6);
  CHECK(sum.in() == 5);
  const auto x = values(15, 5);
  std::vector<float> a(18);
  std::vector<float> b(18);
  std::vector<float> c(18);
  dense.apply(x.data(), 3, a.data());
  pair.apply(x.data(), 3, b.data());
  sum.apply(x.data(), 3, c.data());
  for (std::size_t i = 0; i < c.size(); ++i)
    a[i] += b[i];
  CHECK(testing::relative_error(c, a) < testing::rounding);
  CHECK_THROWS_AS(make_corrected_linear(pair, pair), std::invalid_argument);
  const linear other =
      make_linear(weight_matrix(5, 2, values(10, 3)), weight_matrix(2, 5, values(10, 4)), {});
  CHECK_THROWS_AS(make_corrected_linear(dense, other), std::invalid_argument);
}

} // namespace ressvd_llm
