// SPDX-License-Identifier: Apache-2.0
//
// The command line of compress: presets, options that do not go together, ratios that no ranks
// reach.
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "llm/io/run_command.hpp"
#include "llm/io/temporary.hpp"
#include "llm/model/fixture.hpp"
#include "support/catch.hpp"

namespace ressvd_llm {
namespace {

using llm_test::outcome;
using llm_test::temporary_directory;

class command {
 public:
  explicit command(const std::string& family = "llama")
      : model_((std::filesystem::path(RESSVD_LLM_FIXTURES) / family).string()) {}

  // A short run with these options.
  outcome run(const std::vector<std::string>& options) const {
    std::vector<std::string> arguments{"compress",
                                       model_,
                                       (directory_ / "out").string(),
                                       "--samples",
                                       "8",
                                       "--seqlen",
                                       "16",
                                       "--heldout-samples",
                                       "4",
                                       "--json",
                                       report_(),
                                       "--threads",
                                       "1"};
    arguments.insert(arguments.end(), options.begin(), options.end());
    std::filesystem::remove_all(directory_ / "out");
    return llm_test::run_command(arguments);
  }

  nlohmann::json report() const { return nlohmann::json::parse(llm_test::read(report_())); }
  nlohmann::json options() const { return report()["options"]; }
  std::filesystem::path output() const { return directory_ / "out"; }
  const temporary_directory& directory() const { return directory_; }

 private:
  std::string report_() const { return (directory_ / "report.json").string(); }

  temporary_directory directory_;
  std::string model_;
};

void check_choice(const command& c, const std::string& method, const std::string& allocation,
                  bool retruncate) {
  const auto options = c.options();
  CHECK(options["method"] == method);
  CHECK(options["allocation"] == allocation);
  CHECK(options["retruncate"] == retruncate);
}

} // namespace

TEST_CASE("the default is the preset best, and every run says what it chose and why",
          "[compress][command]") {
  const command c;
  const auto said = [&](const std::vector<std::string>& options, const std::string& line) {
    const outcome result = c.run(options);
    INFO(result.err);
    CHECK(result.status == 0);
    CHECK(result.err.substr(0, result.err.find('\n')).starts_with(line));
  };
  const std::string best = "--method kfac-svd --allocation fisher --retruncate --refine 4";
  said({}, "preset best: " + best + ", the closest to the original");
  check_choice(c, "kfac-svd", "fisher", true);
  CHECK(c.options()["output_power"] == 0.25);
  // A text gets as many samples of the model's own beside it.
  const std::string text = (c.directory() / "text.u16").string();
  std::string ids;
  for (int i = 0; i < 1000; ++i)
    ids += {static_cast<char>(i * i % 31), '\0'};
  llm_test::write(text, ids);
  const std::string mixed =
      "--method kfac-svd --allocation fisher --retruncate --self-samples 8 --refine 4";
  said({"--calibration", text}, "preset best: " + mixed + ", the closest");
  CHECK(c.report()["samples"]["count"] == 16);
  CHECK(c.report()["samples"]["self"] == 8);
  said({"--calibration", text, "--self-samples", "0"}, "preset best, changed: " + best);
  CHECK(c.report()["samples"]["count"] == 8);
  said({"--preset", "fast", "--calibration", text, "--self-samples", "3"},
       "preset fast, changed: --method kfac-svd --allocation fisher --self-samples 3");
  said({"--preset", "fast"}, "preset fast: --method kfac-svd --allocation fisher, ");
  check_choice(c, "kfac-svd", "fisher", false);
  said({"--preset", "ressvd"},
       "preset ressvd: --method ressvd --allocation last-layers, as in arXiv 2505.20112");
  check_choice(c, "ressvd", "last-layers", false);
  said({"--preset", "svd-llm"},
       "preset svd-llm: --method svd-llm --allocation uniform, as in arXiv 2403.07378");
  check_choice(c, "svd-llm", "uniform", false);

  // Explicit options replace parts of a preset; what no longer fits goes.
  said({"--last-layers", "all", "--input-power", "0.5"},
       "preset best, changed: --method kfac-svd --allocation uniform --retruncate");
  CHECK(c.options()["input_power"] == 0.5);
  said({"--preset", "best", "--method", "svd"},
       "preset best, changed: --method svd --allocation fisher");
  said({"--preset", "best", "--update"},
       "preset best, changed: --method kfac-svd --allocation fisher --update");
  said({"--preset", "svd-llm", "--last-layers", "2"},
       "preset svd-llm, changed: --method svd-llm --last-layers 2");
  said({"--preset", "best", "--refine", "0"},
       "preset best, changed: --method kfac-svd --allocation fisher --retruncate");
  CHECK(!c.report().contains("refinement"));
  said({"--preset", "svd-llm", "--refine", "1"},
       "preset svd-llm, changed: --method svd-llm --allocation uniform --refine 1");
  CHECK(c.report().contains("refinement"));
  // A method alone takes nothing of a preset.
  said({"--method", "tempered", "--power", "0.5"}, "--method tempered --allocation last-layers");
  said({"--method", "adasvd"}, "--method adasvd --allocation importance");
}

TEST_CASE("help begins with the presets", "[compress][command]") {
  const outcome help = llm_test::run_command({"compress", "--help"});
  CHECK(help.status == 0);
  const auto presets = help.out.find("Presets:");
  REQUIRE(presets != std::string::npos);
  CHECK(presets < help.out.find("--ratio"));
  CHECK(presets < help.out.find("--help"));
}

TEST_CASE("an option without effect is refused before anything is written", "[compress][command]") {
  const command c;
  const auto refused = [&](const std::vector<std::string>& options, const std::string& message) {
    const outcome result = c.run(options);
    INFO(result.err);
    CHECK(result.status == 2);
    CHECK_THAT(result.err, contains_text(message));
    CHECK(llm_test::tree(c.directory().path()).empty());
  };
  const auto without_effect = [&](const std::vector<std::string>& options) {
    refused(options, options[options.size() - 2] + " has no effect with ");
  };
  refused({"--allocation", "sensitivity", "--last-layers", "3"},
          "--last-layers has no effect with --method kfac-svd --allocation sensitivity "
          "--retruncate --refine 4; it goes with --allocation last-layers");
  without_effect({"--allocation", "uniform", "--last-layers", "5"});
  without_effect({"--allocation", "importance", "--last-layers", "5"});
  without_effect({"--allocation", "importance", "--last-layers", "all"});
  without_effect({"--method", "ressvd", "--power", "0.5"});
  without_effect({"--method", "svd", "--beta", "0.1"});
  without_effect({"--beta", "0.1"});
  without_effect({"--method", "svd-llm", "--update-target", "0.5"});
  without_effect({"--method", "svd-llm", "--update", "--ridge", "0.5"});
  for (const char* option : {"--refine-samples", "--refine-batch", "--refine-rate",
                             "--refine-decay", "--refine-patience"})
    without_effect({"--method", "svd-llm", option, "2"});
  without_effect({"--method", "svd-llm", "--refine-anchor", "0.5"});
  without_effect({"--self-samples", "3"});
  without_effect({"--method", "svd-llm", "--alpha", "0.5"});
  without_effect({"--method", "svd-llm", "--fisher", "file"});
  without_effect({"--method", "svd-llm", "--iterations", "1"});
  without_effect({"--method", "svd-llm", "--minimum-retention", "0.5"});
  without_effect({"--last-layers", "2", "--step", "2"});
  without_effect({"--last-layers", "all", "--search-samples", "2"});
  without_effect({"--method", "svd-llm", "--input-power", "0.5"});
  without_effect({"--method", "svd-llm", "--output-power", "0.5"});
  without_effect({"--method", "svd-llm", "--curvature-ridge", "0.5"});
  without_effect({"--method", "svd-llm", "--curvature-samples", "2"});
  without_effect({"--method", "svd-llm", "--labels", "text"});
  without_effect({"--method", "svd-llm", "--gradients", "file"});
  without_effect({"--preset", "fast", "--probe-samples", "2"});
  without_effect({"--preset", "fast", "--probe-ranks", "1"});
  without_effect({"--preset", "svd-llm", "--rounds", "2"});
  without_effect({"--windows", "first"});
  without_effect({"--backend", "cpu", "--kernel-cache", "."});
  without_effect({"--backend", "cpu", "--device-memory", "1GiB"});
  without_effect({"--backend", "cpu", "--precision", "f32"});
  without_effect(
      {"--preset", "svd-llm", "--calibration", "x.u16", "--windows", "first", "--seed", "1"});
  for (const auto& [option, value] : std::map<std::string, std::string>{
           {"--samples", "3"}, {"--seqlen", "8"}, {"--seed", "1"}, {"--calibration", "x.u16"}}) {
    const outcome result = llm_test::run_command(
        {"compress", RESSVD_LLM_FIXTURES "/llama", c.output().string(), "--preset", "svd-llm",
         "--grams", "x.safetensors", "--heldout-samples", "0", option, value});
    CHECK(result.status == 2);
    CHECK_THAT(result.err, contains_text(option + " has no effect with "));
  }
  refused({"--method", "adasvd", "--update"}, "--update has no effect");
  refused({"--method", "ressvd", "--retruncate"}, "--retruncate has no effect");
  refused({"--retruncate", "--update"}, "excludes");
}

TEST_CASE("a power that is to be chosen needs held-out samples, which is said before the run",
          "[compress][command]") {
  const temporary_directory directory;
  const outcome result =
      llm_test::run_command({"compress", RESSVD_LLM_FIXTURES "/llama", (directory / "out").string(),
                             "--method", "tempered", "--heldout-samples", "0"});
  CHECK(result.status == 2);
  CHECK_THAT(result.err, contains_text("--heldout-samples 0 leaves --power auto nothing"));
  CHECK(llm_test::tree(directory.path()).empty());
}

TEST_CASE("a ratio that no ranks reach is told with the number and status 3",
          "[compress][command]") {
  const command c;
  for (const std::vector<std::string>& how :
       std::vector<std::vector<std::string>>{{"--preset", "best"},
                                             {"--preset", "fast"},
                                             {"--preset", "svd-llm"},
                                             {"--method", "svd-llm", "--last-layers", "1"},
                                             {"--method", "adasvd"}}) {
    INFO(how[1]);
    auto options = how;
    options.insert(options.end(), {"--rank-multiple", "1000"});
    const outcome result = c.run(options);
    CHECK(result.status == 3);
    CHECK_THAT(result.err, contains_text("0.0 % of the layers' matrix parameters are removed where "
                                         "20.0 % were asked for; ranks are multiples of 1000"));
    CHECK_THAT(result.out, contains_text("0.0 % of the layers' matrix parameters removed"));
    CHECK(std::filesystem::exists(c.output() / "config.json"));
    const auto report = c.report();
    CHECK_THAT(report["ratio_shortfall"].get<double>(),
               WithinAbs(0.2 - report["achieved_ratio"].get<double>(), 1e-12));
  }
}

TEST_CASE("a ratio that is passed by far is told", "[compress][command]") {
  const command c;
  const outcome result = c.run({"--preset", "svd-llm", "--ratio", "0.2", "--rank-multiple", "8"});
  CHECK(result.status == 0);
  const double removed = c.report()["achieved_ratio"];
  CHECK(removed > 0.22);
  CHECK_THAT(result.err,
             contains_text("are removed where 20.0 % were asked for; ranks are multiples "
                           "of 8"));
  CHECK_THAT(c.run({"--preset", "svd-llm", "--ratio", "0.5", "--form", "pair"}).err,
             !contains_text("were asked for"));
}

TEST_CASE("the search over last layers leaves out what misses the ratio", "[compress][command]") {
  // Ranks of `multiple` or dense: by which k the ratio is reached depends on the layer's ratio.
  const command c;
  int partly = 0;
  for (const char* multiple : {"2", "4", "6", "8", "12", "16"}) {
    for (const char* ratio : {"0.1", "0.2", "0.3", "0.4"}) {
      INFO("multiple " << multiple << ", ratio " << ratio);
      const auto tried = [&](const char* layers) {
        const outcome result =
            c.run({"--preset", "svd-llm", "--ratio", ratio, "--rank-multiple", multiple,
                   "--allocation", "last-layers", "--last-layers", layers});
        REQUIRE((result.status == 0 || result.status == 3));
        return result.status == 0;
      };
      const bool uniform = tried("2");
      const bool last = tried("1");
      CHECK(tried("auto") == (uniform || last));
      partly += uniform != last;
      if (uniform != last) {
        const auto search = c.report()["allocation"]["search"];
        CHECK(search.size() == 1);
        CHECK(search[0]["last_layers"] == (uniform ? 2 : 1));
      }
    }
  }
  CHECK(partly > 0);
}

TEST_CASE("what is not given is absent from the report, not a value that means nothing",
          "[compress][command]") {
  const command c;
  REQUIRE(c.run({"--method", "svd"}).status == 0);
  const auto report = c.report();
  const auto& options = report["options"];
  for (const char* key :
       {"last_layers", "power", "fisher", "grams", "calibration", "minimum_retention", "type"}) {
    INFO(key);
    CHECK_FALSE(options.contains(key));
  }
  CHECK_FALSE(report.contains("ratio_shortfall"));
  CHECK_FALSE(report.contains("power"));
}

TEST_CASE("table tells fitted runs apart", "[compress][command]") {
  const command c;
  REQUIRE(c.run({"--preset", "svd-llm", "--retruncate"}).status == 0);
  const std::filesystem::path report = c.directory() / "report.json";
  const std::filesystem::path fitted = c.directory() / "fitted.json";
  std::filesystem::rename(report, fitted);
  REQUIRE(c.run({"--preset", "svd-llm"}).status == 0);
  const outcome table = llm_test::run_command({"table", fitted.string(), report.string()});
  CHECK(table.status == 0);
  CHECK_THAT(table.out, contains_text("fit") && contains_text("svd-llm  uniform     retruncate") &&
                            contains_text("svd-llm  uniform     -"));
}

} // namespace ressvd_llm
