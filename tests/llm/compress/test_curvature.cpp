// SPDX-License-Identifier: Apache-2.0
#include "compress/curvature.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "compress/memory_estimate.hpp"
#include "compress/scratch_file.hpp"
#include "llm/io/temporary.hpp"
#include "llm/model/fixture.hpp"
#include "support/catch.hpp"

namespace ressvd_llm::curvature_test {
namespace {

using llm_test::temporary_directory;
using testing::fixture;

constexpr label_options drawn{.source = label_source::drawn, .seed = 5};

sample_set samples_of(const fixture& f) {
  return {.length = 20, .ids = f.tokens};
}

// The fixture's model with its layers over and over.
language_model deep_model(const fixture& f, std::int64_t layers) {
  const language_model original = language_model::open(f.directory);
  model_config config = f.config;
  config.layers = layers;
  language_model model(checkpoint::open(f.directory), config);
  for (std::int64_t layer = 0; layer < layers; ++layer)
    model.replace_layer(layer, original.layer(layer % f.config.layers));
  return model;
}

// Every layer's gradients at the outputs of its matrices, and the inputs, token by token.
struct layer_record {
  std::map<std::size_t, std::vector<float>> x; // by matrix_place::index
  std::map<std::size_t, std::vector<float>> g;
};

gradient_observer recorder(layer_record& record) {
  return [&record](const linear_observation& seen) {
    auto& x = record.x[seen.place.index()];
    auto& g = record.g[seen.place.index()];
    x.insert(x.end(), seen.x, seen.x + seen.tokens * seen.in);
    g.insert(g.end(), seen.g, seen.g + seen.tokens * seen.out);
  };
}

// The same with all hidden states kept.
std::vector<layer_record> expected_records(const language_model& model, const sample_set& samples) {
  model_passes passes(model);
  std::vector<hidden_states> inputs = {passes.embed(samples)};
  const std::int64_t layers = model.config().layers;
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    inputs.push_back(inputs.back());
    passes.run_original(layer, inputs.back(), samples.length);
  }
  hidden_states gradient = inputs.back();
  cpu_backward backward(model.config());
  backward.loss(model.outer(), samples.ids, samples.length, drawn, gradient.data());
  std::vector<layer_record> records(static_cast<std::size_t>(layers));
  for (auto layer = static_cast<std::size_t>(layers); layer-- > 0;) {
    const gradient_observer observer = recorder(records[layer]);
    backward.layer(model.layer(static_cast<std::int64_t>(layer)), inputs[layer].data(),
                   samples.tokens(), samples.length, gradient.data(), {.observer = &observer});
  }
  return records;
}

std::vector<double> gram_of(const std::vector<float>& g, std::int64_t n) {
  std::vector<double> h(static_cast<std::size_t>(n * n));
  for (auto row = g.begin(); row != g.end(); row += n)
    for (std::int64_t i = 0; i < n; ++i)
      for (std::int64_t j = 0; j < n; ++j)
        h[static_cast<std::size_t>(i * n + j)] +=
            static_cast<double>(row[i]) * static_cast<double>(row[j]);
  return h;
}

double relative_error(const std::vector<double>& a, const std::vector<double>& b) {
  REQUIRE(a.size() == b.size());
  double difference = 0;
  double norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return std::sqrt(difference / norm);
}

} // namespace

TEST_CASE("a pass visits layers from the last, with the gradients of one that keeps all states",
          "[curvature]") {
  const fixture f("llama3");
  const sample_set samples = samples_of(f);
  for (const std::int64_t layers : {1, 2, 3, 4, 7, 9, 10}) {
    CAPTURE(layers);
    const language_model model = deep_model(f, layers);
    const std::vector<layer_record> expected = expected_records(model, samples);
    model_passes passes(model);
    std::vector<layer_record> records(expected.size());
    std::vector<std::int64_t> visited;
    const loss_result loss = pass_gradients(
        passes, samples, {.labels = drawn}, [&](std::int64_t layer, const layer_back& back) {
          visited.push_back(layer);
          // Some layers are left to the pass.
          if (layer % 3 == 1) return;
          const gradient_observer observer = recorder(records[static_cast<std::size_t>(layer)]);
          back(&observer);
        });
    CHECK(loss.predicted == samples.tokens());
    REQUIRE(std::ssize(visited) == layers);
    for (std::int64_t i = 0; i < layers; ++i)
      CHECK(visited[static_cast<std::size_t>(i)] == layers - 1 - i);
    for (std::size_t layer = 0; layer < records.size(); ++layer) {
      if (layer % 3 == 1) continue;
      CHECK(records[layer].g == expected[layer].g);
      CHECK(records[layer].x == expected[layer].x);
    }
    const auto root = std::sqrt(static_cast<double>(layers));
    CHECK(static_cast<double>(curvature_copies(layers)) <= 2 * root + 2);
  }
}

TEST_CASE("a pass ends with the first layer whose gradients are needed", "[curvature]") {
  const fixture f("llama3");
  const language_model model = deep_model(f, 7);
  model_passes passes(model);
  for (const std::int64_t first : {0, 1, 2, 3, 5, 6}) {
    std::vector<std::int64_t> visited;
    pass_gradients(passes, samples_of(f), {.labels = drawn, .first_layer = first},
                   [&](std::int64_t layer, const layer_back&) { visited.push_back(layer); });
    REQUIRE(std::ssize(visited) == 7 - first);
    CHECK(visited.back() == first);
  }
}

TEST_CASE("the curvature of every matrix is the sum over its tokens", "[curvature]") {
  for (const std::string& name : testing::families) {
    CAPTURE(name);
    const fixture f(name);
    const sample_set samples = samples_of(f);
    const language_model model = language_model::open(f.directory);
    const std::vector<layer_record> expected = expected_records(model, samples);
    const temporary_directory directory;
    const curvature_store store(directory.path());
    model_passes passes(model);
    const auto engine = make_factoring_engine({});
    gather_curvature(passes, *engine, samples, drawn, store);
    for (std::int64_t layer = 0; layer < f.config.layers; ++layer) {
      REQUIRE(store.contains(layer));
      const auto modules = linear_modules(f.config, layer);
      const auto matrices = store.load(f.config, layer);
      REQUIRE(matrices.size() == modules.size());
      for (std::size_t i = 0; i < modules.size(); ++i) {
        const matrix_curvature& m = matrices[i];
        CAPTURE(modules[i].prefix);
        CHECK(m.module.prefix == modules[i].prefix);
        CHECK(m.outputs.features == modules[i].out);
        CHECK(m.outputs.tokens == samples.tokens());
        const layer_record& record = expected[static_cast<std::size_t>(layer)];
        const std::vector<float>& g = record.g.at(modules[i].place.index());
        const std::vector<float>& x = record.x.at(modules[i].place.index());
        CHECK(relative_error(m.outputs.gram, gram_of(g, modules[i].out)) < testing::rounding);
        // Σ_j of the mean squares of the gradients g·xᵀ, entry by entry.
        std::vector<double> rows(static_cast<std::size_t>(modules[i].out));
        const std::int64_t tokens = static_cast<std::int64_t>(g.size()) / modules[i].out;
        CHECK((tokens == samples.tokens() || modules[i].place.expert != no_expert));
        for (std::int64_t t = 0; t < tokens; ++t)
          for (std::int64_t r = 0; r < modules[i].out; ++r)
            for (std::int64_t c = 0; c < modules[i].in; ++c) {
              const double entry =
                  static_cast<double>(g[static_cast<std::size_t>(t * modules[i].out + r)]) *
                  static_cast<double>(x[static_cast<std::size_t>(t * modules[i].in + c)]);
              rows[static_cast<std::size_t>(r)] +=
                  entry * entry / static_cast<double>(samples.tokens());
            }
        CHECK(relative_error(m.row_importance, rows) < 1e-12);
      }
    }
  }
}

TEST_CASE("an interrupted pass goes on where layers are missing", "[curvature]") {
  const fixture f("opt");
  const sample_set samples = samples_of(f);
  const language_model model = deep_model(f, 5);
  model_passes passes(model);
  const auto engine = make_factoring_engine({});
  const temporary_directory directory;
  std::filesystem::create_directory(directory / "whole");
  std::filesystem::create_directory(directory / "resumed");
  const auto file = [](std::int64_t layer) {
    return "curvature-" + std::to_string(layer) + ".safetensors";
  };
  gather_curvature(passes, *engine, samples, drawn, curvature_store(directory / "whole"));
  // Layers 0, 1 and 4 are there; 4 stays as it is, even if it is another.
  for (const std::int64_t layer : {0, 1})
    std::filesystem::copy_file(directory / "whole" / file(layer),
                               directory / "resumed" / file(layer));
  llm_test::write(directory / "resumed" / file(4), "kept");
  const curvature_store resumed(directory / "resumed");
  CHECK(resumed.contains(4));
  CHECK_FALSE(resumed.contains(3));
  gather_curvature(passes, *engine, samples, drawn, resumed);
  for (const std::int64_t layer : {0, 1, 2, 3})
    CHECK(llm_test::read(directory / "resumed" / file(layer)) ==
          llm_test::read(directory / "whole" / file(layer)));
  CHECK(llm_test::read(directory / "resumed" / file(4)) == "kept");
}

TEST_CASE("stored curvature comes back as it was, and nothing else is taken for one",
          "[curvature]") {
  const fixture f("qwen2");
  const temporary_directory directory;
  const curvature_store store(directory.path());
  std::vector<matrix_curvature> matrices;
  for (const linear_module& module : linear_modules(f.config, 1)) {
    const std::int64_t n = module.out;
    matrix_curvature m{.module = module,
                       .outputs = {.features = n, .tokens = 12345},
                       .row_importance = std::vector<double>(static_cast<std::size_t>(n), 1.0 / 3)};
    for (std::int64_t i = 0; i < n; ++i)
      for (std::int64_t j = 0; j < n; ++j)
        m.outputs.gram.push_back(1.0 / static_cast<double>(1 + i * j + i + j) * 1e-150);
    matrices.push_back(std::move(m));
  }
  CHECK_FALSE(store.contains(1));
  store.save(1, matrices);
  REQUIRE(store.contains(1));
  const auto loaded = store.load(f.config, 1);
  REQUIRE(loaded.size() == matrices.size());
  for (std::size_t i = 0; i < loaded.size(); ++i) {
    CHECK(loaded[i].outputs.gram == matrices[i].outputs.gram);
    CHECK(loaded[i].outputs.tokens == 12345);
    CHECK(loaded[i].row_importance == matrices[i].row_importance);
  }

  const auto refused = [&](const auto& change, const std::string& tensor, const std::string& why) {
    auto changed = matrices;
    change(changed[2]);
    store.save(1, changed);
    const std::string message = llm_test::file_error_of([&] { store.load(f.config, 1); });
    CAPTURE(message);
    CHECK(message.find("curvature-1.safetensors") != std::string::npos);
    CHECK(message.find("v_proj." + tensor) != std::string::npos);
    CHECK(message.find(why) != std::string::npos);
  };
  refused([](auto& m) { m.outputs.tokens = 0; }, "gradient_tokens", "not a number of tokens");
  refused([](auto& m) { m.outputs.gram.back() = -1; }, "gradient_gram", "negative");
  refused([](auto& m) { m.outputs.gram.back() = NAN; }, "gradient_gram", "not finite");
  refused([](auto& m) { m.row_importance[3] = -1; }, "row_importance", "negative");
  llm_test::write(directory / "curvature-1.safetensors", "no file of tensors");
  CHECK(llm_test::file_error_of([&] { store.load(f.config, 1); }).find("curvature-1") !=
        std::string::npos);
  // The model of another shape.
  store.save(1, matrices);
  model_config other = f.config;
  other.intermediate_size += 1;
  CHECK(llm_test::file_error_of([&] { store.load(other, 1); }).find("gate_proj.") !=
        std::string::npos);
}

TEST_CASE("the estimate of a curvature pass grows with its samples as its hidden states do",
          "[curvature]") {
  const fixture f("llama");
  model_config config = f.config;
  config.layers = 16;
  const auto estimate = [&](std::int64_t windows) {
    return estimate_curvature_memory(config, windows, 64, true, 1000);
  };
  CHECK(curvature_copies(16) == 8);
  const std::uint64_t a_window = 8 * 64 * 4 * static_cast<std::uint64_t>(config.hidden_size);
  CHECK(estimate(2000) - estimate(1000) == 1000 * a_window);
}

} // namespace ressvd_llm::curvature_test
