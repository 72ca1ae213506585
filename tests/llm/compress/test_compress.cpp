// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "compress/compress.hpp"
#include "compress/model_passes.hpp"
#include "compress/samples.hpp"
#include "compress/scratch_file.hpp"
#include "io/error.hpp"
#include "llm/compress/short_compression.hpp"
#include "llm/io/temporary.hpp"
#include "llm/model/fixture.hpp"

namespace ressvd_llm {
namespace {

using llm_test::temporary_directory;
using testing::fixture;
using testing::logits_of;
using testing::relative_difference;
using testing::short_compression;

// W of the original and Ŵ of a factored checkpoint, as ‖W−Ŵ‖².
double squared_distance(const checkpoint& original, const checkpoint& factored,
                        const linear_module& m, std::int64_t rank) {
  const auto w = read_f64(original, m.weight_name(), {m.out, m.in});
  const auto u = read_f64(factored, m.u_name(), {m.out, rank});
  const auto v = read_f64(factored, m.v_name(), {rank, m.in});
  double sum = 0;
  for (std::int64_t i = 0; i < m.out; ++i) {
    for (std::int64_t j = 0; j < m.in; ++j) {
      double e = w[static_cast<std::size_t>(i * m.in + j)];
      for (std::int64_t k = 0; k < rank; ++k) {
        e -= u[static_cast<std::size_t>(i * rank + k)] * v[static_cast<std::size_t>(k * m.in + j)];
      }
      sum += e * e;
    }
  }
  return sum;
}

const std::vector<std::string> methods_without_files = {"svd",    "asvd",   "svd-llm",
                                                        "adasvd", "ressvd", "tempered"};

} // namespace

TEST_CASE("Ratio 0 keeps every tensor of every family", "[compress]") {
  for (const std::string& family : testing::families) {
    INFO(family);
    const fixture f(family);
    const temporary_directory dir;
    auto o = short_compression(f.directory, dir / "out");
    o.ratio = 0;
    o.type.reset();
    const auto report = compress(o);
    CHECK(report.achieved_ratio == 0.0);
    const checkpoint before = checkpoint::open(f.directory);
    const checkpoint after = checkpoint::open(o.output);
    REQUIRE(before.names() == after.names());
    for (const std::string& name : before.names()) {
      const tensor_view& a = before.at(name);
      const tensor_view& b = after.at(name);
      INFO(name);
      CHECK(a.shape == b.shape);
      CHECK((a.bytes() == b.bytes() && std::equal(a.data, a.data + a.bytes(), b.data)));
    }
    CHECK(relative_difference(logits_of(f.directory, f), logits_of(o.output, f)) == 0);
  }
}

TEST_CASE("Factored and dense outputs of one run agree, for every family and method",
          "[compress]") {
  for (const std::string& family : testing::families) {
    const fixture f(family);
    for (const std::string& m : methods_without_files) {
      INFO(family << ", " << m);
      const temporary_directory dir;
      auto o = short_compression(f.directory, dir / "factored");
      o.method = m;
      o.power = 0.6;
      const auto report = compress(o);
      CHECK(report.achieved_ratio >= o.ratio);

      const auto factored = logits_of(o.output, f);
      o.output = dir / "dense";
      o.format = output_format::dense;
      compress(o);
      // The product is rounded to float32 once more: a few units of its last place.
      CHECK(relative_difference(factored, logits_of(o.output, f)) < 1e-4);

      // The dense output has the original's names, and the compression has changed something.
      const checkpoint original = checkpoint::open(f.directory);
      CHECK(checkpoint::open(o.output).names() == original.names());
      CHECK(relative_difference(factored, logits_of(f.directory, f)) > 1e-3);
    }
  }
}

TEST_CASE("Pivoted outputs are their products and reach higher ranks at the same size",
          "[compress]") {
  using form = ressvd::factored_form;
  for (const std::string& family : testing::families) {
    const fixture f(family);
    for (const std::string m : {"svd-llm", "ressvd"}) {
      INFO(family << ", " << m);
      const temporary_directory dir;
      auto o = short_compression(f.directory, dir / "pair");
      o.method = m;
      o.form = form::pair;
      const auto pair = compress(o);
      o.form = form::pivoted;
      o.output = dir / "pivoted";
      const auto pivoted = compress(o);
      CHECK(pivoted.achieved_ratio >= o.ratio - 1e-12);
      for (std::size_t i = 0; i < pivoted.matrices.size(); ++i) {
        const matrix_report& now = pivoted.matrices[i];
        if (!now.factors) continue;
        CHECK(now.factors->rank < std::min(now.rows, now.cols));
        REQUIRE(pair.matrices[i].factors);
        CHECK(now.factors->rank > pair.matrices[i].factors->rank);
        CHECK(now.factors->activation_loss->absolute <=
              pair.matrices[i].factors->activation_loss->absolute);
      }
      const auto logits = logits_of(o.output, f);
      o.output = dir / "dense";
      o.format = output_format::dense;
      compress(o);
      CHECK(relative_difference(logits, logits_of(o.output, f)) < 1e-4);
      CHECK(read_config(dir / "pivoted").compressed->form == "pivoted");
    }
  }
}

TEST_CASE("The report's figures are those of the written checkpoint", "[compress]") {
  const fixture f("llama");
  for (const std::string m : {"svd", "svd-llm", "ressvd", "tempered"}) {
    INFO(m);
    const temporary_directory dir;
    auto o = short_compression(f.directory, dir / "out");
    o.method = m;
    o.power = 0.5;
    o.beta = 0.5; // ranks are small: some of it must go to the residual
    o.allocation = allocation::last_layers;
    o.form = ressvd::factored_form::pair;
    const auto report = compress(o);
    const checkpoint before = checkpoint::open(f.directory);
    const checkpoint after = checkpoint::open(o.output);
    const model_config written = read_config(o.output);
    REQUIRE(written.compressed);

    std::int64_t kept = 0;
    std::int64_t all = 0;
    std::size_t index = 0;
    for (std::int64_t layer = 0; layer < f.config.layers; ++layer) {
      for (const linear_module& module : linear_modules(f.config, layer)) {
        const matrix_report& entry = report.matrices[index++];
        CHECK(entry.name == module.prefix);
        all += module.out * module.in;
        if (!entry.factors) {
          CHECK(written.compressed->ranks.count(module.prefix) == 0);
          kept += module.out * module.in;
          continue;
        }
        const factors_report& factors = *entry.factors;
        const std::int64_t rank = factors.rank;
        CHECK(written.compressed->ranks.at(module.prefix) == rank);
        kept += rank * (module.out + module.in);
        // Energies are sums over float products: eps of the total.
        REQUIRE(factors.weight_loss);
        REQUIRE(factors.activation_loss);
        const double total = factors.weight_loss->absolute / factors.weight_loss->relative;
        CHECK_THAT(factors.weight_loss->absolute,
                   WithinAbs(squared_distance(before, after, module, rank), 1e-5 * total));
        CHECK(factors.activation_loss->relative >= 0);
        CHECK(factors.activation_loss->relative < 1);
        if (m == "ressvd" && rank > 1) CHECK(factors.intermediate_rank < rank);
      }
    }
    CHECK_THAT(report.achieved_ratio,
               WithinAbs(1 - static_cast<double>(kept) / static_cast<double>(all), 1e-12));

    // The final-layer error of the chosen k, recomputed from the files.
    const language_model original = language_model::open(f.directory);
    const language_model compressed = language_model::open(o.output);
    const sample_set search = make_samples(o, original).calibration.first(o.search_samples);
    const double error = relative_error(model_passes(original).final_original(search),
                                        model_passes(compressed).final_original(search));
    double smallest = 1e300;
    for (const last_layers_trial& trial : report.choice.search) {
      smallest = (std::min)(smallest, trial.final_layer_error);
      if (trial.last_layers == report.choice.last_layers)
        CHECK_THAT(error, WithinRel(trial.final_layer_error, 1e-4));
    }
    CHECK_THAT(error, WithinRel(smallest, 1e-4));

    const auto windows = cut_windows(make_samples(o, original).heldout.ids, {.length = o.seqlen});
    cpu_forward engine(written);
    CHECK_THAT(report.heldout->compressed_perplexity,
               WithinRel(perplexity(compressed, engine, windows).perplexity, 1e-6));
  }
}

TEST_CASE("Allocations keep to the budget", "[compress]") {
  const fixture f("qwen2");
  for (const allocation a : {allocation::last_layers, allocation::uniform, allocation::importance,
                             allocation::sensitivity}) {
    for (const std::int64_t multiple : {1, 4}) {
      INFO(name_of(a) << ", multiple " << multiple);
      const temporary_directory dir;
      auto o = short_compression(f.directory, dir / "out");
      o.method = "ressvd";
      o.allocation = a;
      o.form = multiple > 1 ? ressvd::factored_form::pivoted : ressvd::factored_form::pair;
      o.rank_multiple = multiple;
      o.ratio = 0.3;
      const auto report = compress(o);
      CHECK(report.achieved_ratio >= o.ratio - 1e-12);
      for (const matrix_report& m : report.matrices) {
        if (m.factors) CHECK(m.factors->rank % multiple == 0);
      }
    }
  }
}

TEST_CASE("The residual stage serves ranks that no candidate has", "[compress]") {
  const fixture f("llama");
  const temporary_directory dir;
  // Ranks by importance depend on the original model alone, so both methods get the same.
  auto o = short_compression(f.directory, dir / "whitened");
  o.form = ressvd::factored_form::pair;
  o.allocation = allocation::importance;
  o.method = "svd-llm";
  compress(o);
  o.method = "ressvd";
  o.beta = 0.5;
  o.output = dir / "compensated";
  const auto report = compress(o);

  const checkpoint original = checkpoint::open(f.directory);
  const checkpoint whitened = checkpoint::open(dir / "whitened");
  const checkpoint compensated = checkpoint::open(o.output);
  std::size_t index = 0;
  int compared = 0;
  for (std::int64_t layer = 0; layer < f.config.layers; ++layer) {
    for (const linear_module& module : linear_modules(f.config, layer)) {
      const auto& factors = report.matrices[index++].factors;
      if (!factors || factors->intermediate_rank == factors->rank) continue;
      const std::int64_t rank = factors->rank;
      // The plain second stage lowers the weight loss, strictly where anything is left to lower.
      CHECK(squared_distance(original, compensated, module, rank) <
            squared_distance(original, whitened, module, rank));
      ++compared;
    }
  }
  CHECK(compared > 0);
}

TEST_CASE("A shared embedding is read under the head's name and written under its own",
          "[compress]") {
  for (const std::string family : {"llama3", "opt", "qwen2"}) {
    INFO(family);
    const fixture f(family);
    REQUIRE(f.config.tied_embeddings);
    const temporary_directory dir;
    const auto model = dir / "model";
    std::filesystem::copy(f.directory, model);
    // The name in the header, which may hold spaces, is exchanged without moving any data.
    const std::string name = canonical_embedding_name(f.config);
    std::string file = llm_test::read(model / "model.safetensors");
    const std::size_t at = file.find("\"" + name + "\"");
    REQUIRE(at != file.npos);
    std::string other = "\"lm_head.weight\"";
    other.resize(name.size() + 2, ' ');
    file.replace(at, other.size(), other);
    llm_test::write(model / "model.safetensors", file);
    CHECK(relative_difference(logits_of(model, f), logits_of(f.directory, f)) == 0);

    for (const std::optional<dtype> type : {std::optional(dtype::f32), std::optional<dtype>()}) {
      INFO("type given: " << type.has_value());
      const std::string suffix = type ? "f32" : "as stored";
      auto o = short_compression(f.directory, dir / ("expected " + suffix));
      o.type = type;
      compress(o);
      const auto expected = o.output;
      o.model = model;
      o.output = dir / ("out " + suffix);
      compress(o);
      const checkpoint written = checkpoint::open(o.output);
      CHECK(written.names() == checkpoint::open(expected).names());
      CHECK(written.contains(name));
      CHECK(relative_difference(logits_of(o.output, f), logits_of(expected, f)) == 0);
    }
  }
}

TEST_CASE("Inputs that are all zero give the plain metric in the report, also of a resumed run",
          "[compress]") {
  const fixture f("llama3"); // v_proj has no bias
  const temporary_directory dir;
  const std::filesystem::path model = dir / "model";
  std::filesystem::copy(f.directory, model);
  { // o_proj of layer 1 reads what v_proj of layer 1 makes.
    std::string file = llm_test::read(model / "model.safetensors");
    std::uint64_t length = 0;
    std::memcpy(&length, file.data(), sizeof length);
    const auto header = nlohmann::json::parse(file.substr(8, length));
    const auto& place = header.at("model.layers.1.self_attn.v_proj.weight").at("data_offsets");
    const auto begin = place[0].get<std::size_t>();
    std::fill_n(file.begin() + static_cast<std::ptrdiff_t>(8 + length + begin),
                place[1].get<std::size_t>() - begin, '\0');
    llm_test::write(model / "model.safetensors", file);
  }
  for (const std::string& method : methods_without_files) {
    for (const bool retruncate : {false, true}) {
      if (retruncate && method != "svd-llm" && method != "tempered") continue;
      INFO(method << (retruncate ? ", truncated anew" : ""));
      auto o = short_compression(model, dir / (method + (retruncate ? "-anew" : "")));
      o.method = method;
      o.retruncate = retruncate;
      const compression_report report =
          compression_report_from_json(nlohmann::json::parse(to_json(compress(o)).dump()));
      const auto& matrix = *std::ranges::find(
          report.matrices, std::string("model.layers.1.self_attn.o_proj"), &matrix_report::name);
      REQUIRE(matrix.factors);
      if (method != "svd" && method != "asvd") {
        REQUIRE(matrix.factors->whitening);
        CHECK(matrix.factors->whitening->path == "plain");
        CHECK(std::isinf(matrix.factors->whitening->relative_damping));
      }
      if (matrix.factors->weight_loss) CHECK(matrix.factors->weight_loss->relative < 0.9);
    }
  }
}

TEST_CASE("The ratio may count the parameters that stay", "[compress]") {
  const fixture f("llama");
  const temporary_directory dir;
  auto o = short_compression(f.directory, dir / "out");
  o.ratio = 0.2;
  o.count_all = true;
  compress(o);
  const auto parameters = [](const std::filesystem::path& d) {
    const checkpoint c = checkpoint::open(d);
    std::int64_t sum = 0;
    for (const std::string& name : parameter_names(c, read_config(d)))
      sum += c.describe(name).elements;
    return static_cast<double>(sum);
  };
  CHECK(1 - parameters(o.output) / parameters(f.directory) >= 0.2);
}

// A matrix as the checkpoint applies it, in × out.
std::vector<float> matrix_of(const std::filesystem::path& directory, std::int64_t layer,
                             const linear_module& m) {
  const language_model model = language_model::open(directory);
  const linear& l = model.layer(layer)[m.place];
  std::vector<float> x(static_cast<std::size_t>(m.in * m.in), 0.0f);
  for (std::int64_t i = 0; i < m.in; ++i)
    x[static_cast<std::size_t>(i * m.in + i)] = 1;
  std::vector<float> y(static_cast<std::size_t>(m.in * m.out));
  l.apply(x.data(), m.in, y.data());
  return y;
}

TEST_CASE("An update on inputs that are still the original's changes nothing", "[compress]") {
  // The first compressed matrices read what intact layers produce: their factors are already the
  // least-squares solution there.
  const fixture f("llama");
  const temporary_directory dir;
  auto o = short_compression(f.directory, dir / "plain");
  o.allocation = allocation::last_layers;
  o.last_layers = 1;
  o.ratio = 0.2;
  compress(o);
  const auto plain = o.output;
  o.output = dir / "updated";
  o.update = true;
  o.update_target = 0.5; // both targets are the same here
  compress(o);
  const std::int64_t layer = f.config.layers - 1;
  std::set<projection> same{projection::q, projection::k, projection::v};
  bool changed = false;
  for (const linear_module& m : linear_modules(f.config, layer)) {
    const double difference =
        relative_difference(matrix_of(plain, layer, m), matrix_of(o.output, layer, m));
    INFO(name_of(m.place));
    // Solving with V·G·Vᵀ costs its condition number times double's eps.
    if (same.contains(m.place.kind)) {
      CHECK(difference < 1e-4);
    } else {
      changed = changed || difference > 1e-3;
    }
  }
  CHECK(changed);
}

TEST_CASE("A new truncation for inputs that are still the original's changes nothing",
          "[compress]") {
  const fixture f("llama");
  const temporary_directory dir;
  auto o = short_compression(f.directory, dir / "plain");
  o.allocation = allocation::last_layers;
  o.last_layers = 1;
  o.ratio = 0.2;
  o.ridge = 0; // the plain truncation has none
  compress(o);
  const auto plain = o.output;
  o.output = dir / "fitted";
  o.retruncate = true;
  const auto report = compress(o);
  CHECK(to_json(report)["options"]["update_target"] == 1.0);
  const std::int64_t layer = f.config.layers - 1;
  const std::set<projection> same{projection::q, projection::k, projection::v};
  bool changed = false;
  for (const linear_module& m : linear_modules(f.config, layer)) {
    INFO(name_of(m.place));
    const double difference =
        relative_difference(matrix_of(plain, layer, m), matrix_of(o.output, layer, m));
    // W' = W·G·G⁻¹ costs the condition number times double's eps.
    if (same.contains(m.place.kind)) {
      CHECK(difference < 1e-4);
    } else {
      changed = changed || difference > 1e-3;
    }
  }
  CHECK(changed);
}

TEST_CASE("Fits to shifted inputs bring the logits closer", "[compress]") {
  const fixture f("llama");
  const temporary_directory dir;
  auto o = short_compression(f.directory, dir / "plain");
  o.samples = 48;
  const double plain = compress(o).heldout->divergence;
  o.retruncate = true;
  o.output = dir / "fitted";
  const double fitted = compress(o).heldout->divergence;
  CHECK(fitted < plain);
}

TEST_CASE("Rounds of probes keep what the held-out samples prefer", "[compress]") {
  const fixture f("qwen2");
  const temporary_directory dir;
  auto o = short_compression(f.directory, dir / "out");
  o.allocation = allocation::sensitivity;
  o.rounds = 3;
  o.probe_ranks = 2;
  const auto report = compress(o);
  CHECK(report.achieved_ratio >= o.ratio - 1e-12);
  const auto& rounds = report.choice.rounds;
  REQUIRE(rounds.size() >= 2);
  CHECK(rounds[0].accepted);
  double best = rounds[0].heldout_divergence;
  for (std::size_t i = 1; i < rounds.size(); ++i) {
    const double found = rounds[i].heldout_divergence;
    CHECK(rounds[i].accepted == (found < best));
    best = (std::min)(best, found);
  }
  // The accepted solution is the one that was written. The evaluation leaves out the last of the
  // 16 positions of each window, which predicts nothing there.
  CHECK_THAT(report.heldout->divergence, WithinRel(best, 1.0 / 16));
  std::map<std::string, int> probed;
  for (const probe_report& p : report.choice.probes)
    ++probed[p.name];
  CHECK(probed.size() == report.matrices.size());
  for (const auto& [name, count] : probed)
    CHECK(count == 2);

  o.heldout_samples = 0;
  o.output = dir / "none";
  CHECK_THROWS_WITH(compress(o), contains_text("--rounds above 1 needs held-out samples"));
  CHECK_FALSE(std::filesystem::exists(o.output));
}

TEST_CASE("A Fisher file of ones makes fwsvd plain SVD", "[compress]") {
  const fixture f("llama");
  const temporary_directory dir;
  auto o = short_compression(f.directory, dir / "svd");
  o.method = "svd";
  const auto plain_report = compress(o);
  const auto plain = logits_of(o.output, f);

  o.method = "fwsvd";
  o.output = dir / "fwsvd";
  std::vector<scratch_matrix> ones;
  for (std::int64_t layer = 0; layer < f.config.layers; ++layer) {
    for (const linear_module& m : linear_modules(f.config, layer)) {
      ones.push_back({m.weight_name(),
                      {m.out, m.in},
                      std::vector<float>(static_cast<std::size_t>(m.out * m.in), 1.0f)});
    }
  }
  o.fisher = dir / "fisher.safetensors";
  write_scratch(o.fisher, ones);
  const auto report = compress(o);
  // Two roads to the same projection, Ŵ = QQᵀW and WQQᵀ: they part where singular values are close.
  CHECK(relative_difference(plain, logits_of(o.output, f)) < 1e-3);
  for (std::size_t i = 0; i < report.matrices.size(); ++i) {
    const auto& factors = report.matrices[i].factors;
    if (!factors) continue;
    const double expected = plain_report.matrices[i].factors->activation_loss->relative;
    CHECK_THAT(factors->activation_loss->relative, WithinAbs(expected, 1e-3));
  }
}

TEST_CASE("Requests that cannot be carried out are refused and leave nothing", "[compress]") {
  const fixture f("llama");
  const temporary_directory dir;
  const auto refused = [&](compress_options o, const std::string& message) {
    CHECK_THROWS_WITH(compress(o), contains_text(message));
    for (const auto& entry : std::filesystem::directory_iterator(dir.path())) {
      CHECK(entry.path().extension() != ".partial");
    }
  };
  auto o = short_compression(f.directory, dir / "out");
  o.output = f.directory;
  refused(o, "llama");
  o = short_compression(f.directory, dir / "out");
  o.ratio = 1;
  refused(o, "ratio");
  o = short_compression(f.directory, dir / "out");
  o.last_layers = 1;
  o.allocation = allocation::last_layers;
  o.ratio = 0.9;
  refused(o, "cannot reach the overall ratio 0.9");
  o = short_compression(f.directory, dir / "out");
  o.calibration = f.directory / "tokens.u16";
  o.seqlen = 64;
  o.windows = window_choice::first;
  refused(o, "tokens.u16");
  o = short_compression(f.directory, dir / "out");
  o.calibration = dir / "none.u16";
  refused(o, "none.u16");

  o = short_compression(f.directory, dir / "out");
  compress(o);
  auto again = short_compression(dir / "out", dir / "twice");
  refused(again, "factored checkpoint already");
}

} // namespace ressvd_llm
