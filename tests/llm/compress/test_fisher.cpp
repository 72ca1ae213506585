// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "compress/compress.hpp"
#include "compress/curvature.hpp"
#include "compress/model_passes.hpp"
#include "compress/samples.hpp"
#include "compress/scratch_file.hpp"
#include "llm/compress/short_compression.hpp"
#include "llm/io/temporary.hpp"
#include "llm/model/fixture.hpp"

namespace ressvd_llm {
namespace {

using llm_test::temporary_directory;
using testing::fixture;
using testing::short_compression;

compress_options by_fisher(const std::filesystem::path& model,
                           const std::filesystem::path& output) {
  compress_options o = short_compression(model, output);
  o.method = "kfac-svd";
  o.allocation = allocation::fisher;
  return o;
}

std::string weights_in(const std::filesystem::path& directory) {
  return llm_test::read(directory / "model.safetensors");
}

TEST_CASE(
    "ranks by fisher keep what the ratio leaves, and the loss they predict is their matrices'",
    "[fisher]") {
  using form = ressvd::factored_form;
  for (const std::string& family : testing::families) {
    for (const form f : {form::pair, form::pivoted}) {
      INFO(family << ", " << name_of(f));
      const fixture model(family);
      const temporary_directory dir;
      auto o = by_fisher(model.directory, dir / "out");
      o.form = f;
      const auto report = compress(o);
      CHECK(report.achieved_ratio >= o.ratio - 1e-9);
      CHECK(report.achieved_ratio < o.ratio + 0.1);
      REQUIRE(report.choice.loss);
      double sum = 0;
      for (const matrix_report& m : report.matrices) {
        if (!m.factors) continue;
        REQUIRE(m.factors->curvature_loss);
        CHECK(*m.factors->curvature_loss >= 0);
        sum += *m.factors->curvature_loss;
      }
      CHECK(report.choice.loss->predicted == Approx(sum).epsilon(1e-9));
      CHECK(report.choice.loss->bound <= report.choice.loss->predicted * (1 + 1e-12));
      CHECK(report.choice.loss->measured > 0);
    }
  }
}

TEST_CASE("ranks by fisher are the same whatever method makes the factors", "[fisher]") {
  const fixture f("qwen3");
  const temporary_directory dir;
  auto o = by_fisher(f.directory, dir / "kfac-svd");
  const auto expected = compress(o);
  for (const std::string method : {"svd-llm", "svd", "tempered"}) {
    INFO(method);
    o.method = method;
    o.power = 0.5;
    o.output = dir / method;
    const auto report = compress(o);
    REQUIRE(report.matrices.size() == expected.matrices.size());
    for (std::size_t i = 0; i < report.matrices.size(); ++i) {
      REQUIRE(report.matrices[i].factors.has_value() == expected.matrices[i].factors.has_value());
      if (!report.matrices[i].factors) continue;
      CHECK(report.matrices[i].factors->rank == expected.matrices[i].factors->rank);
      CHECK_FALSE(report.matrices[i].factors->curvature_loss);
    }
  }
}

// Both metrics take part: with a power of 0 on a side that side's metric is a multiple of I.
TEST_CASE("kfac-svd without its output metric is svd-llm, and without its input metric it is not",
          "[fisher]") {
  const fixture f("llama");
  const temporary_directory dir;
  auto o = short_compression(f.directory, dir / "svd-llm");
  compress(o);
  const auto expected = testing::logits_of(o.output, f);
  o.method = "kfac-svd";
  o.output_power = 0;
  o.output = dir / "right";
  compress(o);
  CHECK(testing::relative_difference(expected, testing::logits_of(o.output, f)) < 1e-3);
  o.input_power = 0;
  o.output = dir / "neither";
  compress(o);
  CHECK(testing::relative_difference(expected, testing::logits_of(o.output, f)) > 1e-3);
}

TEST_CASE("fwsvd without a file takes the gradients of its samples", "[fisher]") {
  const fixture f("llama");
  const temporary_directory dir;
  auto o = short_compression(f.directory, dir / "own");
  o.method = "fwsvd";
  compress(o);

  // The mean squared gradients of single tokens, g_i²·x_j², entry by entry.
  const language_model model = language_model::open(f.directory);
  const sample_set samples = make_samples(o, model).calibration.first(samples_of_curvature(o));
  model_passes passes(model);
  std::vector<scratch_matrix> fisher;
  pass_gradients(
      passes, samples, {.labels = {.source = label_source::drawn, .seed = o.seed}},
      [&](std::int64_t layer, const layer_back& back) {
        const auto modules = linear_modules(f.config, layer);
        std::vector<std::vector<float>> sums(modules.size());
        const gradient_observer observer = [&](const linear_observation& seen) {
          for (std::size_t i = 0; i < modules.size(); ++i) {
            if (modules[i].place != seen.place) continue;
            sums[i].resize(static_cast<std::size_t>(seen.out * seen.in));
            for (std::int64_t t = 0; t < seen.tokens; ++t)
              for (std::int64_t a = 0; a < seen.out; ++a)
                for (std::int64_t b = 0; b < seen.in; ++b)
                  sums[i][static_cast<std::size_t>(a * seen.in + b)] +=
                      std::pow(seen.g[t * seen.out + a] * seen.x[t * seen.in + b], 2.0f);
          }
        };
        back(&observer);
        for (std::size_t i = 0; i < modules.size(); ++i)
          fisher.push_back(
              {modules[i].weight_name(), {modules[i].out, modules[i].in}, std::move(sums[i])});
      });
  o.fisher = dir / "fisher.safetensors";
  write_scratch(o.fisher, fisher);
  o.output = dir / "given";
  compress(o);
  CHECK(testing::relative_difference(testing::logits_of(dir / "own", f),
                                     testing::logits_of(dir / "given", f)) < 1e-3);
}

TEST_CASE("the curvature may come from a file, which is checked", "[fisher]") {
  const fixture f("llama");
  const temporary_directory dir;
  auto o = by_fisher(f.directory, dir / "own");
  compress(o);

  const language_model model = language_model::open(f.directory);
  const sample_set samples = make_samples(o, model).calibration.first(samples_of_curvature(o));
  model_passes passes(model);
  const auto engine = make_factoring_engine(o);
  const curvature_store store(dir.path());
  gather_curvature(passes, *engine, samples, {.source = label_source::drawn, .seed = o.seed},
                   store);
  std::vector<scratch_tensor<double>> tensors;
  for (std::int64_t layer = 0; layer < f.config.layers; ++layer) {
    for (const matrix_curvature& m : store.load(f.config, layer)) {
      tensors.push_back(
          {m.module.prefix + ".gradient_gram", {m.module.out, m.module.out}, m.outputs.gram});
      tensors.push_back({m.module.prefix + ".row_importance", {m.module.out}, m.row_importance});
      tensors.push_back(
          {m.module.prefix + ".gradient_tokens", {1}, {static_cast<double>(m.outputs.tokens)}});
    }
  }
  o.gradients = dir / "gradients.safetensors";
  write_scratch(o.gradients, tensors);
  o.output = dir / "given";
  compress(o);
  CHECK(weights_in(dir / "given") == weights_in(dir / "own"));

  const auto refused = [&](const auto& change, const std::string& tensor, const std::string& why) {
    auto changed = tensors;
    change(changed);
    write_scratch(o.gradients, changed);
    o.output = dir / "refused";
    const std::string message = llm_test::file_error_of([&] { compress(o); });
    INFO(message);
    CHECK(message.find(tensor) != std::string::npos);
    CHECK(message.find(why) != std::string::npos);
    CHECK_FALSE(std::filesystem::exists(o.output));
    std::filesystem::remove_all(testing::partial_of(o.output));
  };
  refused([](auto& list) { list[3].values[1] += 1; }, "k_proj.gradient_gram", "differs from");
  refused([](auto& list) { list[3].values[0] = -1; }, "k_proj.gradient_gram", "negative");
  refused([](auto& list) { list[4].values[2] = -1; }, "k_proj.row_importance", "negative");
  refused([](auto& list) { list[5].values[0] = 0.5; }, "k_proj.gradient_tokens",
          "is not a number of tokens");
  refused([](auto& list) { list.erase(list.begin() + 3); }, "k_proj.gradient_gram", "missing");
}

} // namespace
} // namespace ressvd_llm
