// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"

#include <array>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <ressvd/compiled.hpp>

#include "compress/compress.hpp"
#include "compress/model_passes.hpp"
#include "compress/samples.hpp"
#include "io/error.hpp"
#include "llm/compress/short_compression.hpp"
#include "llm/io/temporary.hpp"
#include "llm/model/fixture.hpp"

namespace ressvd_llm {
namespace {

using llm_test::temporary_directory;
using testing::fixture;

struct f64_tensor {
  std::vector<std::int64_t> shape;
  std::vector<double> values;
};
using gram_tensors = std::map<std::string, f64_tensor>;

// A compression that calibrates, searches and probes on the same windows.
compress_options one_sample_set(const std::filesystem::path& model,
                                const std::filesystem::path& output) {
  compress_options o = testing::short_compression(model, output);
  o.search_samples = o.samples;
  o.probe_samples = o.samples;
  return o;
}

void write(const std::filesystem::path& file, const gram_tensors& tensors) {
  auto header = nlohmann::ordered_json::object();
  std::uint64_t offset = 0;
  for (const auto& [name, t] : tensors) {
    const std::uint64_t end = offset + t.values.size() * sizeof(double);
    header[name] = {{"dtype", "F64"}, {"shape", t.shape}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  const std::string text = header.dump();
  const std::uint64_t length = text.size();
  std::ofstream out(file, std::ios::binary);
  const auto put = [&](const void* data, std::size_t bytes) {
    out.write(static_cast<const char*>(data), static_cast<std::streamsize>(bytes));
  };
  put(&length, sizeof(length));
  put(text.data(), text.size());
  for (const auto& [name, t] : tensors)
    put(t.values.data(), t.values.size() * sizeof(double));
}

// The statistics of the run's own calibration samples, under the names of the first matrices that
// read each input.
gram_tensors grams_of(const compress_options& options) {
  const language_model model = language_model::open(options.model);
  const sample_set samples = make_samples(options, model).calibration;
  model_passes passes(model);
  hidden_states hidden = passes.embed(samples);
  gram_tensors tensors;
  for (std::int64_t layer = 0; layer < model.config().layers; ++layer) {
    using accumulator = ressvd::gram_accumulator<ressvd::eigen_backend<double>>;
    std::map<std::size_t, std::optional<accumulator>> sums; // by layer_input::index
    const input_observer observer = [&](const input_observation& seen) {
      const activation_view& x = seen.x;
      auto& gram = sums[seen.input.index()];
      if (!gram) {
        gram.emplace(ressvd::eigen_backend<double>(), x.cols,
                     ressvd::gram_options{.channel_means = true});
      }
      gram->add(ressvd::row_major(x.host(), x.rows, x.cols));
    };
    passes.run_original(layer, hidden, samples.length, &observer);
    for (const linear_module& m : linear_modules(model.config(), layer)) {
      auto& gram = sums[m.input.index()];
      if (!gram) continue; // its first matrix has them
      ressvd::gram_state state = gram->state();
      for (double& magnitude : state.abs_sum)
        magnitude /= static_cast<double>(state.tokens);
      tensors[m.prefix + ".gram"] = {{m.in, m.in}, std::move(state.gram)};
      tensors[m.prefix + ".mean_abs"] = {{m.in}, std::move(state.abs_sum)};
      tensors[m.prefix + ".tokens"] = {{1}, {static_cast<double>(state.tokens)}};
      gram.reset();
    }
  }
  return tensors;
}

std::string weights_of(const std::filesystem::path& directory) {
  std::ifstream in(directory / "model.safetensors", std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

} // namespace

TEST_CASE("Grams from a file do what the samples behind them do", "[compress][grams]") {
  for (const std::string family : {"llama3", "opt", "mixtral"}) {
    const fixture f(family);
    const temporary_directory dir;
    auto o = one_sample_set(f.directory, dir / "direct");
    const auto file = dir / "grams.safetensors";
    write(file, grams_of(o));
    const auto compare = [&](const std::string& what) {
      INFO(family << ", " << what);
      o.grams.clear();
      o.output = dir / (what + "-direct");
      const auto direct = to_json(compress(o));
      o.grams = file;
      o.output = dir / (what + "-given");
      const auto given = to_json(compress(o));
      CHECK(weights_of(dir / (what + "-direct")) == weights_of(o.output));
      REQUIRE(direct["matrices"].size() == given["matrices"].size());
      for (std::size_t i = 0; i < direct["matrices"].size(); ++i) {
        for (const char* key : {"rank", "activation_loss", "weight_loss"}) {
          CHECK(direct["matrices"][i].value(key, nlohmann::ordered_json()) ==
                given["matrices"][i].value(key, nlohmann::ordered_json()));
        }
      }
      CHECK(direct["heldout"] == given["heldout"]);
      return given["samples"]["count"].get<std::int64_t>();
    };
    CHECK(compare("uniform") == 0);
    o.allocation = allocation::last_layers;
    o.last_layers = 2;
    CHECK(compare("last two") == 0);
    o.method = "ressvd";
    o.last_layers.reset();
    CHECK(compare("search") == 24);
    o.method = "tempered";
    o.power = 0.6;
    o.allocation = allocation::sensitivity;
    CHECK(compare("sensitivity") == 24);
    o.method = "adasvd";
    o.allocation = allocation::importance;
    CHECK(compare("importance") == 24);
    o.method = "svd-llm";
    o.allocation = allocation::uniform;
    o.update = true;
    CHECK(compare("update") == 24);
  }
}

TEST_CASE("Only as many samples are drawn as Grams from a file leave necessary",
          "[compress][grams]") {
  const fixture f("llama");
  const temporary_directory dir;
  const language_model model = language_model::open(f.directory);
  auto o = one_sample_set(f.directory, dir / "out");
  const calibration_samples all = make_samples(o, model);
  o.grams = dir / "grams.safetensors";
  o.search_samples = 6;
  CHECK(make_samples(o, model).calibration.count() == 0);
  o.allocation = allocation::last_layers;
  const calibration_samples some = make_samples(o, model);
  CHECK(some.calibration.count() == 6);
  CHECK(some.heldout.ids == all.heldout.ids);
  o.calibration = f.directory / "tokens.u16";
  o.windows = window_choice::first;
  o.samples = 4;
  o.search_samples = 3;
  const calibration_samples cut = make_samples(o, model);
  CHECK(cut.calibration.count() == 3);
  CHECK(cut.heldout.count() == 1); // the fifth window of 80 tokens: no Gram of four has seen it
  CHECK(std::equal(cut.heldout.ids.begin(), cut.heldout.ids.end(), f.tokens.begin() + 64));
  o.heldout_samples = 0;
  o.calibration.clear();
  o.allocation = allocation::uniform;
  CHECK(make_samples(o, model).heldout.count() == 0);
}

TEST_CASE("A file holds only the Grams that are asked for, under any of their matrices' names",
          "[compress][grams]") {
  const fixture f("llama");
  const temporary_directory dir;
  auto o = one_sample_set(f.directory, dir / "whole");
  gram_tensors tensors = grams_of(o);
  o.allocation = allocation::last_layers;
  o.last_layers = 1;
  o.ratio = 0.2;
  o.grams = dir / "grams.safetensors";
  write(o.grams, tensors);
  compress(o);
  const std::string whole = weights_of(o.output);

  for (const std::string what : {".gram", ".mean_abs", ".tokens"}) {
    auto node = tensors.extract("model.layers.1.self_attn.q_proj" + what);
    node.key() = "model.layers.1.self_attn.v_proj" + what;
    tensors.insert(std::move(node));
  }
  std::erase_if(tensors, [](const auto& t) { return t.first.starts_with("model.layers.0."); });
  o.output = dir / "part";
  o.grams = dir / "part.safetensors";
  write(o.grams, tensors);
  compress(o);
  CHECK(weights_of(o.output) == whole);
}

TEST_CASE("Files that hold no Grams of the model are refused and leave nothing",
          "[compress][grams]") {
  const fixture f("llama");
  const temporary_directory dir;
  auto o = one_sample_set(f.directory, dir / "out");
  const gram_tensors whole = grams_of(o);
  o.grams = dir / "grams.safetensors";
  const auto refused = [&](const std::string& message,
                           const std::function<void(gram_tensors&)>& spoil) {
    INFO(message);
    gram_tensors tensors = whole;
    spoil(tensors);
    write(o.grams, tensors);
    CHECK_THROWS_WITH(compress(o), contains_text("grams.safetensors: tensor " + message));
    CHECK_THROWS_AS(compress(o), file_error);
    CHECK_FALSE(std::filesystem::exists(o.output));
    CHECK_FALSE(std::filesystem::exists(o.output.string() + ".partial"));
  };
  const std::string q = "model.layers.1.self_attn.q_proj";
  const std::string down = "model.layers.0.mlp.down_proj";
  refused(q + ".gram: missing, and so is model.layers.1.self_attn.k_proj.gram, "
              "model.layers.1.self_attn.v_proj.gram",
          [&](auto& t) { t.erase(q + ".gram"); });
  refused(down + ".gram: missing", [&](auto& t) { t.erase(down + ".gram"); });
  refused(q + ".mean_abs: missing", [&](auto& t) { t.erase(q + ".mean_abs"); });
  refused(q + ".tokens: missing", [&](auto& t) { t.erase(q + ".tokens"); });
  refused(q + ".gram: shape [16, 64] where [32, 32] is expected", [&](auto& t) {
    t[q + ".gram"].shape = {16, 64};
  });
  refused(q + ".mean_abs: shape [32, 1] where [32] is expected", [&](auto& t) {
    t[q + ".mean_abs"].shape = {32, 1};
  });
  refused(q + ".tokens: shape [] where [1] is expected",
          [&](auto& t) { t[q + ".tokens"].shape = {}; });
  refused(q + ".gram: element 35 is not finite",
          [&](auto& t) { t[q + ".gram"].values[35] = std::numeric_limits<double>::quiet_NaN(); });
  refused(q + ".mean_abs: element 3 is not finite",
          [&](auto& t) { t[q + ".mean_abs"].values[3] = std::numeric_limits<double>::infinity(); });
  refused(q + ".mean_abs: element 3 is negative",
          [&](auto& t) { t[q + ".mean_abs"].values[3] = -1; });
  for (const double tokens : {0.0, -1.0, 1.5}) {
    refused(q + ".tokens: " + std::to_string(tokens) + " is not a number of tokens",
            [&](auto& t) { t[q + ".tokens"].values = {tokens}; });
  }
  refused(q + ".gram: element [2, 2] is negative",
          [&](auto& t) { t[q + ".gram"].values[2 * 32 + 2] = -1; });
  refused(q + ".gram: element [3, 1] differs from [1, 3]", [&](auto& t) {
    auto& g = t[q + ".gram"].values;
    g[1 * 32 + 3] += 0.01 * std::sqrt(g[1 * 32 + 1] * g[3 * 32 + 3]);
  });

  o.grams = dir / "none.safetensors";
  CHECK_THROWS_WITH(compress(o), contains_text("none.safetensors"));
  CHECK_FALSE(std::filesystem::exists(o.output));
  auto other = o;
  other.grams.clear();
  CHECK(fingerprint(o) != fingerprint(other));
}

} // namespace ressvd_llm
