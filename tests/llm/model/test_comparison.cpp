// SPDX-License-Identifier: Apache-2.0
#include "model/comparison.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "compress/scratch_file.hpp"
#include "io/checkpoint.hpp"
#include "io/error.hpp"
#include "llm/io/run_command.hpp"
#include "llm/io/temporary.hpp"
#include "llm/model/fixture.hpp"
#include "support/catch.hpp"

using namespace ressvd_llm;
namespace fs = std::filesystem;
using llm_test::temporary_directory;
using ressvd_llm::testing::fixture;

using llm_test::outcome;
using llm_test::run_command;

namespace {

/// The model with the MLP's output of one layer scaled.
language_model changed(const language_model& original, std::int64_t layer) {
  language_model model = original;
  layer_weights weights = original.layer(layer);
  linear& down = weights[projection::down];
  std::vector<float> values = down.dense.values();
  for (float& value : values)
    value *= 1.5f;
  down = make_linear(weight_matrix(down.out(), down.in(), std::move(values)), down.bias);
  model.replace_layer(layer, std::move(weights));
  return model;
}

} // namespace

TEST_CASE("a model compared with itself loses nothing", "[compare]") {
  const fixture f("llama");
  const language_model model = language_model::open(f.directory);
  const auto windows = cut_windows(f.tokens, {.length = f.window()});
  const auto figures = compare_models({model, model}, {{"text", windows}});
  cpu_forward engine(f.config);
  const double expected = perplexity(model, engine, windows).perplexity;
  REQUIRE(figures.size() == 2);
  for (const model_figures& m : figures) {
    // The same float32 logits, summed in another order in float64.
    CHECK(m.texts.at(0).perplexity == Approx(expected).epsilon(1e-12));
    CHECK(m.texts.at(0).divergence < 1e-12);
    CHECK(m.layer_errors == std::vector<double>(static_cast<std::size_t>(f.config.layers), 0.0));
    CHECK(m.tokens_per_second > 0);
    CHECK(m.bytes == fs::file_size(f.directory / "model.safetensors"));
    std::int64_t parameters = 0;
    for (const std::string& name : model.source().names())
      parameters += model.source().describe(name).elements;
    CHECK(m.parameters == parameters);
  }
}

TEST_CASE("figures of a changed model are those of its own passes", "[compare]") {
  const fixture f("llama");
  const language_model original = language_model::open(f.directory);
  const language_model other = changed(original, 1);
  const auto windows = cut_windows(f.tokens, {.length = f.window()});
  const auto one = cut_windows(f.tokens, {.length = f.window(), .max_windows = 1});
  std::vector<double> fractions;
  const auto figures = compare_models({original, other}, {{"both", windows}, {"one", one}},
                                      [&](double fraction) { fractions.push_back(fraction); });

  cpu_forward engine(f.config);
  const auto h = final_hidden(original, engine, windows).values();
  const auto changed_h = final_hidden(other, engine, windows).values();
  CHECK(figures[1].texts.at(0).perplexity ==
        Approx(perplexity(other, engine, windows).perplexity).epsilon(1e-12));
  CHECK(figures[1].texts.at(1).perplexity ==
        Approx(perplexity(other, engine, one).perplexity).epsilon(1e-12));
  std::vector<float> p(static_cast<std::size_t>(windows.count * windows.length * f.config.vocab));
  std::vector<float> q(p.size());
  const std::int64_t tokens = windows.count * windows.length;
  engine.logits(original.outer(), h.data(), tokens, p.data());
  engine.logits(other.outer(), changed_h.data(), tokens, q.data());
  const auto divergences = kl_divergences(p.data(), q.data(), tokens, f.config.vocab);
  const double mean =
      std::accumulate(divergences.begin(), divergences.end(), 0.0) / static_cast<double>(tokens);
  CHECK(mean > 0);
  // A block of rows may be multiplied in another order than all rows: float32 rounding.
  CHECK(figures[1].texts.at(0).divergence == Approx(mean).epsilon(1e-3));

  // Only the last layer differs. Its error is that over both texts, one window counted twice.
  REQUIRE(figures[1].layer_errors.size() == 2);
  CHECK(figures[1].layer_errors[0] == 0);
  double difference = 0;
  double reference = 0;
  const auto add = [&](std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
      const double x = h[i];
      const double d = x - static_cast<double>(changed_h[i]);
      difference += d * d;
      reference += x * x;
    }
  };
  add(h.size());
  add(h.size() / 2);
  CHECK(figures[1].layer_errors[1] == Approx(std::sqrt(difference / reference)).epsilon(1e-6));
  CHECK(fractions.back() == 1.0);
  CHECK(std::is_sorted(fractions.begin(), fractions.end()));
}

TEST_CASE("models that are not alike cannot be compared", "[compare]") {
  const temporary_directory directory;
  const fixture f("llama");
  const fs::path other = directory / "other";
  fs::create_directory(other);
  const auto write_tensors = [&](std::int64_t vocabulary) {
    const checkpoint source = checkpoint::open(f.directory);
    std::vector<scratch_matrix> tensors;
    for (const std::string& name : source.names()) {
      auto shape = source.describe(name).shape;
      auto values = read_f32(source, name, shape);
      if (shape[0] == f.config.vocab) {
        shape[0] = vocabulary;
        values.resize(static_cast<std::size_t>(vocabulary * shape[1]));
      }
      tensors.push_back({name, shape, values});
    }
    write_scratch(other / "model.safetensors", tensors);
  };
  auto config = nlohmann::json::parse(llm_test::read(f.directory / "config.json"));
  std::string expected;
  SECTION("vocabulary") {
    config["vocab_size"] = 79;
    write_tensors(79);
    expected = "its vocabulary is 79, the original's is 80";
  }
  SECTION("layers") {
    config["num_hidden_layers"] = 1;
    write_tensors(80);
    expected = "its number of layers is 1, the original's is 2";
  }
  llm_test::write(other / "config.json", config.dump());
  const outcome result = run_command({"compare", f.directory.string(), other.string()});
  CHECK(result.status == 2);
  CHECK_THAT(result.err, contains_text(expected));
}

TEST_CASE("samples, reports and tables on the command line", "[compare]") {
  const temporary_directory directory;
  const fixture f("llama");
  const std::string model = f.directory.string();
  const auto file = [&](const char* name) { return (directory / name).string(); };

  REQUIRE(
      run_command({"sample", model, file("s.u16"), "--samples", "6", "--seqlen", "16"}).status ==
      0);
  REQUIRE(
      run_command({"sample", model, file("s.u32"), "--samples", "6", "--seqlen", "16"}).status ==
      0);
  CHECK(fs::file_size(file("s.u16")) == 6 * 16 * 2);
  CHECK(read_tokens(file("s.u16"), f.config.vocab, nullptr) ==
        read_tokens(file("s.u32"), f.config.vocab, nullptr));
  CHECK(run_command({"sample", model, file("s.txt")}).status == 2);

  const std::string before = llm_test::read(file("s.u16"));
  const std::vector<std::string> again{"sample", model,      file("s.u16"), "--samples",
                                       "1",      "--seqlen", "16"};
  const outcome kept = run_command(again);
  CHECK(kept.status == 2);
  CHECK_THAT(kept.err, contains_text("s.u16: exists already; --overwrite replaces it"));
  CHECK(llm_test::read(file("s.u16")) == before);
  std::vector<std::string> replacing = again;
  replacing.emplace_back("--overwrite");
  CHECK(run_command(replacing).status == 0);
  CHECK(fs::file_size(file("s.u16")) == 16 * 2);
  llm_test::write(file("s.u16"), before);

  for (const char* layers : {"all", "auto"}) {
    const outcome result =
        run_command({"compress", model, file(layers), "--method", "svd-llm", "--ratio", "0.4",
                     "--calibration", file("s.u16"), "--windows", "first", "--samples", "4",
                     "--seqlen", "16", "--last-layers", layers, "--json", file(layers) + ".json"});
    REQUIRE(result.status == 0);
  }
  const auto report = nlohmann::json::parse(llm_test::read(file("auto.json")));
  const outcome table = run_command({"table", file("all.json"), file("auto.json")});
  CHECK(table.status == 0);
  CHECK(std::count(table.out.begin(), table.out.end(), '\n') == 3);
  CHECK_THAT(table.out, contains_text(report["parameters"].dump()));
  CHECK_THAT(table.out, contains_text(report["bytes"].dump()));
  CHECK(run_command({"table", file("s.u16")}).status == 2);
  llm_test::write(file("other.json"), "{}");
  CHECK_THAT(run_command({"table", file("other.json")}).err, contains_text("is no report"));

  const outcome result =
      run_command({"compare", model, file("all"), file("auto"), "--tokens", file("s.u16"),
                   "--seqlen", "16", "--json", file("compare.json")});
  REQUIRE(result.status == 0);
  CHECK_THAT(result.out, contains_text("perplexity s.u16"));
  const auto json = nlohmann::json::parse(llm_test::read(file("compare.json")));
  REQUIRE(json["models"].size() == 3);
  CHECK(json["models"][0]["texts"][0]["divergence"] == 0.0);
  CHECK(json["models"][1]["parameters"] < json["models"][0]["parameters"]);
  CHECK(json["models"][1]["texts"][0]["divergence"] > 0.0);
}
