// SPDX-License-Identifier: Apache-2.0
#include "compress/memory_estimate.hpp"

#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "io/checkpoint_writer.hpp"
#include "llm/io/temporary.hpp"
#include "llm/model/fixture.hpp"
#include "support/catch.hpp"

namespace ressvd_llm {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool sanitized = true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
constexpr bool sanitized = true;
#else
constexpr bool sanitized = false;
#endif
#else
constexpr bool sanitized = false;
#endif

// A model of random weights of some ten megabytes, half of them in the embedding.
void make_model(const std::filesystem::path& directory) {
  const nlohmann::json json = {{"architectures", {"LlamaForCausalLM"}},
                               {"hidden_size", 192},
                               {"intermediate_size", 512},
                               {"num_hidden_layers", 8},
                               {"num_attention_heads", 6},
                               {"vocab_size", 20'000},
                               {"max_position_embeddings", 64},
                               {"rms_norm_eps", 1e-5},
                               {"tie_word_embeddings", true}};
  const model_config config = parse_config(directory / "config.json", json.dump());
  checkpoint_writer writer(directory, "");
  unsigned seed = 0;
  const auto add = [&](const std::string& name, const std::vector<std::int64_t>& shape) {
    const std::int64_t count = shape.front() * (shape.size() > 1 ? shape.back() : 1);
    auto values = testing::random_values(count, ++seed);
    for (float& value : values)
      value *= 0.1f;
    writer.add(name, shape, values, dtype::f32);
  };
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    for (const linear_module& m : linear_modules(config, layer))
      add(m.weight_name(), {m.out, m.in});
    for (const std::string& name : norm_scale_names(config, layer))
      add(name, {config.hidden_size});
  }
  add("model.embed_tokens.weight", {config.vocab, config.hidden_size});
  add("model.norm.weight", {config.hidden_size});
  writer.add_file("config.json", json.dump());
  writer.commit();
}

} // namespace

TEST_CASE("a run takes the memory that it estimates, the evaluation's included", "[compress]") {
  if (sanitized) return;
  const llm_test::temporary_directory directory;
  make_model(directory / "model");
  struct run {
    const char* options;
    const char* name;
  };
  for (const run& r : {run{"--heldout-samples 16 --format dense", "dense"},
                       run{"--heldout-samples 16", "factored"},
                       run{"--heldout-samples 0 --refine 1", "refined"}}) {
    INFO(r.name);
    const auto json = directory / (std::string(r.name) + ".json");
    // A child of the shell's: what a process has had resident outlives exec.
    const std::string line =
        std::string("'") + RESSVD_LLM_PROGRAM + "' compress '" + (directory / "model").string() +
        "' '" + (directory / r.name).string() +
        "' --preset svd-llm --samples 32 --seqlen 64 --threads 2 " + r.options + " --json '" +
        json.string() + "' > '" + (directory / "log").string() + "' 2>&1; exit $?";
    REQUIRE(std::system(line.c_str()) == 0);
    const auto memory = nlohmann::json::parse(llm_test::read(json))["memory"];
    const auto estimate = memory["estimate_bytes"].get<double>();
    const auto peak = memory["peak_bytes"].get<double>();
    CHECK(peak < 1.02 * estimate);
    CHECK(estimate < 1.25 * peak);
  }
}

TEST_CASE("the evaluation holds the weights of two models", "[compress]") {
  const testing::fixture f("llama");
  compress_options options;
  options.heldout_samples = 16;
  options.calibration = "text.u16";
  const std::uint64_t parameters = 100'000'000;
  const auto estimate = [&](std::uint64_t output) {
    return estimate_memory(options, f.config, true, parameters, output);
  };
  CHECK(estimate(parameters).total() >= 8 * parameters);
  CHECK(estimate(parameters).evaluation - estimate(parameters / 2).evaluation == 2 * parameters);
  CHECK(estimate(parameters).weights == 4 * parameters);
  // One that is too large to be held is not.
  CHECK(estimate(2'000'000'000).total() < 8 * parameters);
  options.heldout_samples = 0;
  CHECK(estimate(parameters).evaluation == 0);
  CHECK(estimate(parameters).total() < 5 * parameters);
}

} // namespace ressvd_llm
