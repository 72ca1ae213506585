// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "compress/compress.hpp"
#include "compress/model_passes.hpp"
#include "compress/samples.hpp"
#include "compress/scratch_file.hpp"
#include "io/checkpoint_writer.hpp"
#include "llm/compress/short_compression.hpp"
#include "llm/io/run_command.hpp"
#include "llm/io/temporary.hpp"
#include "llm/model/fixture.hpp"

namespace ressvd_llm::mixtures_test {
namespace {

using llm_test::outcome;
using llm_test::run_command;
using llm_test::temporary_directory;
using testing::fixture;
using testing::short_compression;

// The fixture with routers that find all experts equal, and so choose the first two.
std::filesystem::path with_idle_experts(const fixture& f, const std::filesystem::path& output) {
  checkpoint_writer writer(output, f.directory);
  const checkpoint source = checkpoint::open(f.directory);
  for (const std::string& name : source.names()) {
    const tensor_view& tensor = source.at(name);
    const std::vector<float> zeros(static_cast<std::size_t>(tensor.elements()));
    const bool router = name.ends_with("block_sparse_moe.gate.weight");
    if (router) {
      writer.add(name, tensor.shape, zeros, dtype::f32);
    } else {
      writer.add(tensor);
    }
  }
  writer.copy_file(f.directory / "config.json");
  writer.commit();
  return output;
}

bool of_expert(const std::string& name, std::int64_t expert) {
  return name.find(".experts." + std::to_string(expert) + ".") != std::string::npos;
}

void check_finite(const std::filesystem::path& output, const fixture& f) {
  for (const float logit : testing::logits_of(output, f))
    REQUIRE(std::isfinite(logit));
}

} // namespace

TEST_CASE("an expert's activation loss is that of the tokens that it was routed", "[mixture]") {
  for (const std::string family : {"mixtral", "qwen3_moe"}) {
    INFO(family);
    const fixture f(family);
    const temporary_directory dir;
    auto o = short_compression(f.directory, dir / "out");
    o.form = ressvd::factored_form::pair;
    const compression_report report = compress(o);
    std::map<std::string, const matrix_report*> reports;
    for (const matrix_report& m : report.matrices)
      reports[m.name] = &m;

    const language_model original = language_model::open(f.directory);
    const language_model compressed = language_model::open(o.output);
    const sample_set samples = make_samples(o, original).calibration;
    model_passes passes(original);
    hidden_states hidden = passes.embed(samples);
    std::int64_t experts = 0;
    for (std::int64_t layer = 0; layer < f.config.layers; ++layer) {
      std::map<std::size_t, std::vector<float>> inputs;
      const input_observer observer = [&](const input_observation& seen) {
        auto& to = inputs[seen.input.index()];
        to.insert(to.end(), seen.x.host(), seen.x.host() + seen.x.rows * seen.x.cols);
      };
      passes.run_original(layer, hidden, samples.length, &observer);
      for (const linear_module& m : linear_modules(f.config, layer)) {
        INFO(m.prefix);
        REQUIRE(reports.contains(m.prefix));
        const matrix_report& of_matrix = *reports[m.prefix];
        REQUIRE(of_matrix.factors);
        const std::vector<float>& x = inputs[m.input.index()];
        const std::int64_t tokens = std::ssize(x) / m.in;
        if (m.place.expert != no_expert) ++experts;
        std::vector<float> y(static_cast<std::size_t>(tokens * m.out));
        std::vector<float> z(y.size());
        original.layer(layer)[m.place].apply(x.data(), tokens, y.data());
        compressed.layer(layer)[m.place].apply(x.data(), tokens, z.data());
        double lost = 0;
        double all = 0;
        for (std::size_t i = 0; i < y.size(); ++i) {
          lost += std::pow(static_cast<double>(y[i]) - static_cast<double>(z[i]), 2);
          all += std::pow(static_cast<double>(y[i]), 2);
        }
        // Singular Grams of few tokens are damped, and small losses are differences in float32.
        CHECK(std::abs(lost - of_matrix.factors->activation_loss->absolute) <
              1e-3 * lost + 1e-5 * all);
      }
    }
    CHECK(experts == (family == "mixtral" ? 24 : 15));
  }
}

TEST_CASE("experts that no token reaches are factored in the plain metric, by every method",
          "[mixture]") {
  const fixture f("mixtral");
  const temporary_directory dir;
  const auto model = with_idle_experts(f, dir / "model");
  auto o = short_compression(model, dir / "svd");
  o.form = ressvd::factored_form::pair;
  o.method = "svd";
  const compression_report plain = compress(o);
  for (const std::string method : {"asvd", "svd-llm", "adasvd", "ressvd", "tempered", "kfac-svd"}) {
    INFO(method);
    o.method = method;
    o.power = method == "tempered" ? std::optional(0.6) : std::nullopt;
    o.output = dir / method;
    const compression_report report = compress(o);
    check_finite(o.output, f);
    for (std::size_t i = 0; i < report.matrices.size(); ++i) {
      const matrix_report& m = report.matrices[i];
      INFO(m.name);
      REQUIRE(m.factors);
      const bool idle = of_expert(m.name, 2) || of_expert(m.name, 3);
      CHECK((m.factors->whitening->path == "plain") == idle);
      if (!idle || method == "adasvd") continue;
      CHECK(m.factors->weight_loss->absolute ==
            Approx(plain.matrices[i].factors->weight_loss->absolute).epsilon(1e-4));
    }
  }
  // With gradients alone, fits to shifted inputs and refinement, idle experts stay as harmless.
  o.method = "fwsvd";
  o.output = dir / "fwsvd";
  compress(o);
  check_finite(o.output, f);
  o.method = "svd-llm";
  for (const bool anew : {false, true}) {
    o.update = !anew;
    o.retruncate = anew;
    o.update_target = 0.5;
    o.output = dir / (anew ? "retruncated" : "updated");
    compress(o);
    check_finite(o.output, f);
  }
  o.refine.epochs = 1;
  o.output = dir / "refined";
  compress(o);
  check_finite(o.output, f);
}

TEST_CASE("an expert with fewer tokens than its width is a reported outcome", "[mixture]") {
  const fixture f("mixtral");
  const temporary_directory dir;
  auto o = short_compression(f.directory, dir / "out");
  o.samples = 1;
  o.seqlen = 12;
  o.heldout_samples = 0;
  const compression_report report = compress(o);
  check_finite(o.output, f);
  std::int64_t singular = 0;
  for (const matrix_report& m : report.matrices) {
    if (m.name.find(".experts.") == std::string::npos) continue;
    REQUIRE(m.factors);
    if (m.factors->whitening->path != "cholesky") ++singular;
  }
  CHECK(singular == 24);
}

TEST_CASE("ranks are chosen for experts as for other matrices", "[mixture]") {
  for (const std::string family : {"mixtral", "qwen3_moe"}) {
    const fixture f(family);
    const temporary_directory dir;
    auto o = short_compression(f.directory, dir / "out");
    for (const allocation how : {allocation::last_layers, allocation::importance,
                                 allocation::sensitivity, allocation::fisher}) {
      INFO(family << " " << static_cast<int>(how));
      o.allocation = how;
      o.method = how == allocation::fisher ? "kfac-svd" : "svd-llm";
      o.rounds = how == allocation::sensitivity || how == allocation::fisher ? std::optional(2)
                                                                             : std::nullopt;
      o.output = dir / std::to_string(static_cast<int>(how));
      const compression_report report = compress(o);
      CHECK(report.achieved_ratio > o.ratio - 0.02);
      std::int64_t modules = 0;
      for (std::int64_t layer = 0; layer < f.config.layers; ++layer)
        modules += std::ssize(linear_modules(f.config, layer));
      CHECK(std::ssize(report.matrices) == modules);
      check_finite(o.output, f);
    }
  }
}

TEST_CASE("a mixture passes through the program's commands", "[mixture][program]") {
  const temporary_directory dir;
  for (const std::string family : {"mixtral", "qwen3_moe"}) {
    INFO(family);
    const fixture f(family);
    auto o = short_compression(f.directory, dir / family);
    compress(o);
    const std::string compressed = o.output.string();
    const std::string json = (dir / "report.json").string();
    const outcome inspected = run_command({"inspect", compressed, "--json", json});
    REQUIRE(inspected.status == 0);
    CHECK_THAT(inspected.out, contains_text("experts, of which a token has 2"));
    CHECK_THAT(inspected.out,
               contains_text(family == "mixtral" ? "experts.w1" : "experts.gate_proj"));
    const auto report = nlohmann::json::parse(llm_test::read(json));
    CHECK(report["experts"] == f.config.experts);
    CHECK(report["layers"][1]["matrices"].size() == linear_modules(f.config, 1).size());
    const std::string tokens = (f.directory / "tokens.u16").string();
    CHECK(run_command({"perplexity", compressed, "--tokens", tokens, "--seqlen", "16"}).status ==
          0);
    CHECK(run_command(
              {"compare", f.directory.string(), compressed, "--tokens", tokens, "--seqlen", "16"})
              .status == 0);
    const std::string prompt = (dir / "prompt.u16").string();
    llm_test::write(prompt, std::string_view("\3\0\4\0\5\0", 6));
    CHECK(
        run_command({"generate", compressed, "--prompt-tokens", prompt, "--tokens", "4"}).status ==
        0);
  }
}

} // namespace ressvd_llm::mixtures_test
