// SPDX-License-Identifier: Apache-2.0
#include "compress/compress.hpp"

#include <chrono>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <ressvd/version.hpp>

#include "compress/samples.hpp"
#include "compress/rank_selection.hpp"
#include "compress/gram_file.hpp"
#include "compress/memory_estimate.hpp"
#include "compress/write_checkpoint.hpp"
#include "compress/model_ranks.hpp"
#include "compress/sequential_refit.hpp"
#include "compress/model_passes.hpp"
#include "io/checkpoint_writer.hpp"
#include "io/error.hpp"
#include "model/evaluation.hpp"
#include "ui/progress.hpp"

namespace ressvd_llm {
namespace {

using nlohmann::ordered_json;

class stage_clock {
 public:
  void finish(const char* stage) {
    const auto now = std::chrono::steady_clock::now();
    seconds_[stage] = std::chrono::duration<double>(now - start_).count();
    start_ = now;
  }
  const ordered_json& seconds() const { return seconds_; }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  ordered_json seconds_ = ordered_json::object();
};

const char* name_of_path(ressvd::whitening_path path) {
  switch (path) {
    case ressvd::whitening_path::cholesky:
      return "cholesky";
    case ressvd::whitening_path::damped_cholesky:
      return "damped cholesky";
    case ressvd::whitening_path::eigenvalues:
      return "eigenvalues";
    case ressvd::whitening_path::qr:
      return "qr";
    case ressvd::whitening_path::power:
      return "power";
  }
  return "";
}

// JSON has no infinity and no NaN.
ordered_json number(double value) {
  return std::isfinite(value) ? ordered_json(value) : ordered_json(nullptr);
}

ordered_json loss_of(double lost, double total) {
  lost = (std::max)(lost, 0.0);
  return {{"absolute", lost}, {"relative", total > 0 ? lost / total : 0.0}};
}

// What became of one matrix. Losses are known where the basis' projection was kept: not after a
// closed-form update, and the activation loss only in the projections whose Gram was still there.
ordered_json describe(const factored_matrix& m, const ressvd::rank_choice& chosen,
                      const compress_options& options, bool updated) {
  ordered_json json{{"name", m.module.prefix}, {"rows", m.module.out}, {"cols", m.module.in}};
  if (chosen.dense) {
    json["rank"] = nullptr;
    return json;
  }
  const residual_stage* stage = m.stage_for(chosen.rank);
  json["rank"] = chosen.rank;
  json["intermediate_rank"] =
      stage != nullptr ? stage->intermediate_rank
      : options.method == method::ressvd
          ? ressvd::intermediate_rank(m.module.out, m.module.in,
                                      {.rank = chosen.rank, .beta = options.beta})
          : chosen.rank;
  const bool complete = options.method != method::ressvd || stage != nullptr;
  if (complete && !updated) {
    const auto leading =
        static_cast<std::size_t>(stage != nullptr ? stage->intermediate_rank : chosen.rank);
    double weight = stage != nullptr ? stage->weight_energy : 0;
    double activation = stage != nullptr ? stage->activation_energy : 0;
    for (std::size_t i = 0; i < leading; ++i) {
      weight += m.weight_energies[i];
      activation += m.activation_energies[i];
    }
    json["weight_loss"] = loss_of(m.weight_total - weight, m.weight_total);
    json["activation_loss"] = loss_of(m.activation_total - activation, m.activation_total);
  }
  json["whitening"] = {{"path", name_of_path(m.whitening.path)},
                       {"damping", m.whitening.damping},
                       {"relative_damping", m.whitening.relative_damping},
                       {"condition", number(m.whitening.condition)}};
  json["numerical_rank"] = m.svd.numerical_rank;
  json["seconds"] = m.seconds;
  return json;
}

ordered_json describe(const chosen_ranks& chosen) {
  ordered_json json = ordered_json::object();
  if (chosen.last_layers) json["last_layers"] = *chosen.last_layers;
  if (!chosen.search.empty()) {
    json["search"] = ordered_json::array();
    for (const auto& s : chosen.search) {
      json["search"].push_back({{"last_layers", s.candidate.layers},
                                {"layer_ratio", s.candidate.ratio},
                                {"final_layer_error", s.error}});
    }
  }
  if (!chosen.layer_ratios.empty()) json["layer_ratios"] = chosen.layer_ratios;
  if (!chosen.probes.empty()) {
    json["probes"] = ordered_json::array();
    for (const auto& p : chosen.probes) {
      json["probes"].push_back({{"name", p.prefix},
                                {"rank", p.rank},
                                {"divergence", p.divergence},
                                {"sensitivity", p.sensitivity},
                                {"exponent", p.exponent}});
    }
    json["predicted_loss"] = chosen.predicted_loss;
    json["loss_bound"] = chosen.loss_bound;
    json["measured_loss"] = chosen.measured_loss;
  }
  if (!chosen.rounds.empty()) {
    json["rounds"] = ordered_json::array();
    for (const auto& r : chosen.rounds) {
      json["rounds"].push_back({{"round", r.round},
                                {"trust", r.trust},
                                {"heldout_divergence", r.heldout_divergence},
                                {"accepted", r.accepted}});
    }
  }
  return json;
}

void check(const compress_options& options, const language_model& model) {
  const auto refuse = [](const std::string& what) { throw usage_error(what); };
  if (model.config().compressed && model.config().compressed->format == "factored") {
    refuse(options.model.string() + ": is a factored checkpoint already");
  }
  if (options.method == method::fwsvd && options.fisher.empty()) {
    refuse("fwsvd needs the mean squared gradients of the model's matrices: --fisher FILE");
  }
  if (options.method != method::fwsvd && !options.fisher.empty()) {
    refuse("--fisher belongs to --method fwsvd");
  }
  if (options.retruncate && options.method != method::svd_llm &&
      options.method != method::tempered) {
    refuse("--retruncate belongs to --method svd-llm and tempered");
  }
  if (options.retruncate && options.update) {
    refuse("--retruncate and --update exclude each other");
  }
  if (options.samples < 1 || options.seqlen < 2) {
    refuse("calibration needs at least 1 sample of 2 tokens, not " +
           std::to_string(options.samples) + " of " + std::to_string(options.seqlen));
  }
  if (!(options.ratio >= 0 && options.ratio < 1)) {
    refuse("--ratio " + std::to_string(options.ratio) + " is outside [0, 1)");
  }
}

// The power of tempered whitening whose uniformly compressed model is closest to the original on
// samples that no Gram has seen.
class power_search {
 public:
  power_search(workbench& bench, const compress_options& options,
               const calibration_samples& samples)
      : bench_(bench), options_(options), samples_(samples) {}

  double choose(double ratio, const std::filesystem::path& scratch) {
    if (samples_.heldout.count() == 0) {
      throw usage_error("--power auto needs held-out samples; the calibration text is too short");
    }
    const std::vector<ressvd::layer_candidate> uniform{{bench_.config().layers, ratio}};
    const auto wanted = wanted_ranks(uniform, bench_.config(), options_);
    const auto ranks = ranks_of(uniform.front(), bench_.config(), options_);
    const hidden_states original = bench_.final_original(samples_.heldout);
    std::optional<std::pair<double, double>> best;
    for (const double power : {0.4, 0.6, 0.8, 1.0}) {
      const auto directory = scratch / ("power-" + std::to_string(power));
      std::filesystem::create_directories(directory);
      bench_.use(layer_store(directory), power);
      bench_.factor(samples_.calibration, wanted);
      const auto changed = bench_.final_compressed(bench_.embed(samples_.heldout), 0,
                                                   samples_.heldout.length, ranks);
      const double divergence = bench_.mean_divergence(original, changed);
      curve_.push_back({{"power", power}, {"heldout_divergence", divergence}});
      if (!best || divergence < best->second) best.emplace(power, divergence);
      std::filesystem::remove_all(directory);
    }
    return best->first;
  }

  const ordered_json& curve() const { return curve_; }

 private:
  workbench& bench_;
  const compress_options& options_;
  const calibration_samples& samples_;
  ordered_json curve_ = ordered_json::array();
};

// Writes the layers after the last mark; the others are in the partial checkpoint already.
void write_layers(checkpoint_writer& writer, workbench& bench, const compress_options& options,
                  const chosen_ranks& chosen, const sample_set& calibration) {
  const std::string run = fingerprint(options);
  const auto mark = [&](std::int64_t next) {
    writer.mark(ordered_json{{"run", run}, {"next_layer", next}}.dump());
  };
  std::int64_t next = -1;
  if (writer.resumed_state()) next = ordered_json::parse(*writer.resumed_state())["next_layer"];
  if (next < 0) {
    write_kept_tensors(writer, bench.model(), chosen.ranks, options);
    mark(next = 0);
  }
  std::optional<sequential_update> update;
  if (refits(options)) {
    update.emplace(bench, options, calibration);
  }
  progress bar("writing", bench.config().layers);
  for (std::int64_t layer = 0; layer < bench.config().layers; ++layer) {
    const auto& ranks = chosen.ranks[static_cast<std::size_t>(layer)];
    const auto updated = writer.scratch() / ("updated-" + std::to_string(layer) + ".safetensors");
    if (layer < next) {
      if (update) {
        layer_weights weights = bench.model().layer(layer);
        load_linears(updated, bench.config(), layer, weights);
        update->skip(layer, weights);
      }
    } else {
      const layer_weights weights =
          update ? update->update(layer, ranks) : bench.compressed_layer(layer, ranks);
      if (update) save_linears(updated, bench.config(), layer, weights);
      write_layer(writer, bench.model(), layer, weights, options);
      mark(layer + 1);
    }
    bar.advance();
  }
}

// What was lost on text that the calibration has not seen, measured on the written checkpoint.
ordered_json evaluate(workbench& bench, const compress_options& options,
                      const sample_set& heldout) {
  if (heldout.count() == 0) return nullptr;
  const auto windows = cut_windows(heldout.ids, {.length = heldout.length});
  const language_model written = language_model::open(options.output);
  cpu_forward engine(written.config());
  const auto original = final_hidden(bench.model(), bench.engine(), windows);
  const auto compressed = final_hidden(written, engine, windows);
  const auto total = [](const std::vector<double>& values) {
    return std::accumulate(values.begin(), values.end(), 0.0);
  };
  double before = 0;
  double after = 0;
  double divergence = 0;
  std::vector<float> other;
  const std::int64_t tokens = windows.count * windows.length;
  const std::int64_t vocab = written.config().vocab;
  for_each_logits(bench.model(), bench.engine(), original.data(), tokens,
                  [&](const float* reference, std::int64_t first, std::int64_t rows) {
                    const std::span<const std::int32_t> targets(windows.targets.data() + first,
                                                                static_cast<std::size_t>(rows));
                    other.resize(static_cast<std::size_t>(rows * vocab));
                    engine.logits(written.outer(),
                                  compressed.data() + first * written.config().hidden_size, rows,
                                  other.data());
                    before += total(next_token_losses(reference, targets, vocab));
                    after += total(next_token_losses(other.data(), targets, vocab));
                    divergence += total(kl_divergences(reference, other.data(), rows, vocab));
                  });
  const auto count = static_cast<double>(tokens);
  return {{"windows", heldout.count()},
          {"tokens", heldout.tokens()},
          {"original_perplexity", std::exp(before / count)},
          {"compressed_perplexity", std::exp(after / count)},
          {"divergence", divergence / count}};
}

} // namespace

ordered_json compress(const compress_options& options) {
  stage_clock clock;
  const std::uint64_t program = peak_memory(); // and its libraries: CUDA's alone take 200 MiB
  const language_model model = language_model::open(options.model);
  check(options, model);
  const model_config& config = model.config();
  const double ratio = matrix_ratio(options, config, model.source());
  const auto candidates = last_layer_choices(options, config, ratio);
  const std::string run = fingerprint(options);
  if (!options.grams.empty()) {
    gram_file(options.grams).require(config, wanted_ranks(candidates, config, options));
  }

  checkpoint_writer writer(options.output, options.model, {.resume = options.resume});
  if (writer.resumed_state()) {
    if (ordered_json::parse(*writer.resumed_state())["run"] != run) {
      throw usage_error(options.output.string() +
                        ": the interrupted run had other options; start without --resume");
    }
  } else {
    writer.mark(ordered_json{{"run", run}, {"next_layer", -1}}.dump());
  }

  std::int64_t parameters = 0;
  for (const std::string& name : model.source().names()) {
    parameters += model.source().describe(name).elements;
  }
  const std::uint64_t estimate =
      program + estimate_memory(options, config, model.storage() == weight_storage::float32,
                                static_cast<std::uint64_t>(parameters))
                    .total();
  constexpr double mebi = 1024.0 * 1024.0;
  std::fprintf(stderr, "estimated peak memory: %.0f MiB\n", static_cast<double>(estimate) / mebi);

  const calibration_samples samples = make_samples(options, model);
  clock.finish("sampling");
  workbench bench(options, model);
  ordered_json power_curve;
  double power = options.power.value_or(1.0);
  if (options.method == method::tempered && !options.power) {
    power_search search(bench, options, samples);
    power = search.choose(ratio, writer.scratch());
    power_curve = search.curve();
    clock.finish("power search");
  }
  bench.use(layer_store(writer.scratch()), power);
  bench.factor(samples.calibration, wanted_ranks(candidates, config, options));
  clock.finish("factoring");
  const chosen_ranks chosen = choose_ranks(bench, options, ratio, candidates, samples);
  clock.finish("choosing ranks");
  const double achieved = achieved_ratio(chosen.ranks, config);

  ordered_json matrices = ordered_json::array();
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    const auto& ranks = chosen.ranks[static_cast<std::size_t>(layer)];
    const auto modules = linear_modules(config, layer);
    std::vector<factored_matrix> factored(modules.size());
    if (bench.store().contains(layer)) {
      factored = bench.store().load_summary(config, layer).matrices;
    }
    for (std::size_t i = 0; i < modules.size(); ++i) {
      factored[i].module = modules[i];
      matrices.push_back(describe(factored[i], ranks[i], options, refits(options)));
    }
  }
  write_layers(writer, bench, options, chosen, samples.calibration);
  write_description(writer, model, chosen.ranks, options, achieved);
  writer.commit();
  clock.finish("writing");

  const ordered_json heldout = evaluate(bench, options, samples.heldout);
  clock.finish("evaluation");

  ordered_json report{{"program", "ressvd-llm " RESSVD_VERSION_STRING},
                      {"model", options.model.string()},
                      {"output", options.output.string()},
                      {"options", ordered_json::parse(run)},
                      {"samples",
                       {{"count", samples.calibration.count()},
                        {"length", samples.calibration.length},
                        {"source", options.calibration.empty() ? std::string("self")
                                                               : options.calibration.string()}}},
                      {"requested_ratio", options.ratio},
                      {"achieved_ratio", achieved},
                      {"allocation", describe(chosen)}};
  if (options.method == method::tempered) {
    report["power"] = power;
    if (!power_curve.is_null()) report["power_curve"] = power_curve;
  }
  report["matrices"] = std::move(matrices);
  report["heldout"] = heldout;
  report["seconds"] = clock.seconds();
  report["memory"] = {
      {"program_bytes", program}, {"estimate_bytes", estimate}, {"peak_bytes", peak_memory()}};
  const fallback_report fallbacks = bench.compressor().fallbacks();
  if (fallbacks.count > 0) {
    report["fallbacks"] = {{"count", fallbacks.count}, {"last", fallbacks.last}};
    std::fprintf(stderr, "%lld decompositions by a second routine, the last: %s\n",
                 static_cast<long long>(fallbacks.count), fallbacks.last.c_str());
  }
  std::fprintf(stderr, "peak memory: %.0f MiB\n", static_cast<double>(peak_memory()) / mebi);
  return report;
}

} // namespace ressvd_llm
