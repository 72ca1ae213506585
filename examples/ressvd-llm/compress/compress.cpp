// SPDX-License-Identifier: Apache-2.0
#include "compress/compress.hpp"

#include <chrono>
#include <cstdio>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <ressvd/version.hpp>

#include "compress/factored_model.hpp"
#include "compress/gram_file.hpp"
#include "compress/memory_estimate.hpp"
#include "compress/model_passes.hpp"
#include "compress/model_ranks.hpp"
#include "compress/power_search.hpp"
#include "compress/rank_selection.hpp"
#include "compress/resume.hpp"
#include "compress/samples.hpp"
#include "compress/sequential_refit.hpp"
#include "compress/write_checkpoint.hpp"
#include "io/checkpoint_writer.hpp"
#include "io/error.hpp"
#include "model/comparison.hpp"
#include "ui/progress.hpp"

namespace ressvd_llm {
namespace {

class stage_clock {
 public:
  void finish(const char* stage) {
    const auto now = std::chrono::steady_clock::now();
    seconds_.push_back({stage, std::chrono::duration<double>(now - start_).count()});
    start_ = now;
  }
  const std::vector<stage_time>& seconds() const { return seconds_; }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  std::vector<stage_time> seconds_;
};

void check(const compress_options& options, const language_model& model) {
  const auto refuse = [](const std::string& what) { throw usage_error(what); };
  (void)method_of(options); // throws for a name that no method has
  if (model.config().compressed && model.config().compressed->format == "factored") {
    refuse(options.model.string() + ": is a factored checkpoint already");
  }
  if (options.method == "fwsvd" && options.fisher.empty()) {
    refuse("fwsvd needs the mean squared gradients of the model's matrices: --fisher FILE");
  }
  if (options.samples < 1 || options.seqlen < 2) {
    refuse("calibration needs at least 1 sample of 2 tokens, not " +
           std::to_string(options.samples) + " of " + std::to_string(options.seqlen));
  }
  if (!(options.ratio >= 0 && options.ratio < 1)) {
    refuse("--ratio " + std::to_string(options.ratio) + " is outside [0, 1)");
  }
}

// The output, new or where an interrupted run left it.
checkpoint_writer open_output(const compress_options& options) {
  checkpoint_writer writer(options.output, options.model, {.resume = options.resume});
  const std::string run = fingerprint(options);
  if (!writer.resumed_state()) {
    writer.mark(run_state{.options = run}.to_text());
  } else if (run_state::from_text(*writer.resumed_state()).options != run) {
    throw usage_error(options.output.string() +
                      ": the interrupted run had other options; start without --resume");
  }
  return writer;
}

std::int64_t count_parameters(const checkpoint& source) {
  std::int64_t parameters = 0;
  for (const std::string& name : source.names())
    parameters += source.describe(name).elements;
  return parameters;
}

// Writes the layers after the last mark; the others are in the partial checkpoint already.
void write_layers(checkpoint_writer& writer, model_passes& passes, const factored_model& factored,
                  const compress_options& options, const model_ranks& ranks,
                  const sample_set& calibration) {
  const language_model& model = passes.model();
  const model_config& config = model.config();
  run_state state{.options = fingerprint(options)};
  if (writer.resumed_state()) state = run_state::from_text(*writer.resumed_state());
  const auto mark = [&](std::int64_t next) {
    state.next_layer = next;
    writer.mark(state.to_text());
  };
  if (state.next_layer < 0) {
    write_kept_tensors(writer, model, ranks, options);
    mark(0);
  }
  std::optional<sequential_refit> refit;
  if (refits(options)) refit.emplace(passes, factored, options, calibration);
  progress bar("writing", config.layers);
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    const auto scratch = writer.scratch() / ("updated-" + std::to_string(layer) + ".safetensors");
    if (layer < state.next_layer) {
      if (refit) {
        layer_weights weights = model.layer(layer);
        load_factors(scratch, config, layer, weights);
        refit->skip(weights);
      }
    } else {
      const layer_weights weights =
          refit ? refit->next(ranks[layer]) : factored.layer(layer, ranks[layer]);
      if (refit) save_factors(scratch, config, layer, weights);
      write_layer(writer, model, layer, weights, options);
      mark(layer + 1);
    }
    bar.advance();
  }
}

std::vector<matrix_report> report_matrices(const factored_model& factored,
                                           const model_config& config, const model_ranks& ranks,
                                           const compress_options& options) {
  std::vector<matrix_report> reports;
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    auto modules = linear_modules(config, layer);
    std::vector<factored_module> matrices(modules.size());
    if (factored.store().contains(layer)) matrices = factored.summary(layer).matrices;
    for (std::size_t i = 0; i < modules.size(); ++i) {
      matrices[i].module = std::move(modules[i]);
      reports.push_back(report_of(matrices[i], ranks[layer][i], options));
    }
  }
  return reports;
}

// Measured on the written checkpoint.
std::optional<heldout_report> evaluate(const language_model& original,
                                       const compress_options& options, const sample_set& heldout) {
  if (heldout.count() == 0) return std::nullopt;
  const auto figures = compare_on_text({original, language_model::open(options.output)},
                                       cut_windows(heldout.ids, {.length = heldout.length}));
  return heldout_report{.windows = heldout.count(),
                        .tokens = heldout.tokens(),
                        .original_perplexity = figures[0].perplexity,
                        .compressed_perplexity = figures[1].perplexity,
                        .divergence = figures[1].divergence};
}

void print_memory(const char* what, std::uint64_t bytes) {
  constexpr double mebi = 1024.0 * 1024.0;
  std::fprintf(stderr, "%s: %.0f MiB\n", what, static_cast<double>(bytes) / mebi);
}

} // namespace

compression_report compress(const compress_options& options) {
  stage_clock clock;
  compression_report report;
  report.memory.program = peak_memory(); // and its libraries: CUDA's alone take 200 MiB
  const language_model model = language_model::open(options.model);
  check(options, model);
  const model_config& config = model.config();
  const double ratio = matrix_ratio(options, config, model.source());
  const auto candidates = last_layer_choices(options, config, ratio);
  const candidate_ranks wanted = ranks_of_all(candidates, config, options);
  if (!options.grams.empty()) gram_file(options.grams).require(config, wanted);
  checkpoint_writer writer = open_output(options);
  report.memory.estimate =
      report.memory.program +
      estimate_memory(options, config, model.storage() == weight_storage::float32,
                      static_cast<std::uint64_t>(count_parameters(model.source())))
          .total();
  print_memory("estimated peak memory", report.memory.estimate);

  const calibration_samples samples = make_samples(options, model);
  clock.finish("sampling");

  model_passes passes(model);
  const auto engine = make_factoring_engine(options);
  compress_options chosen = options; // with the power of tempered whitening
  if (options.method == "tempered" && !options.power) {
    const power_choice power =
        search_power(passes, *engine, options, ratio, samples, writer.scratch());
    chosen.power = power.power;
    report.power_curve = power.curve;
    clock.finish("power search");
  }
  const factored_model factored =
      factor_model(passes, *engine, chosen, samples.calibration, wanted, writer.scratch());
  clock.finish("factoring");

  rank_selection selection = select_ranks(passes, factored, options, ratio, candidates, samples);
  clock.finish("choosing ranks");

  report.achieved_ratio = achieved_ratio(selection.ranks, config);
  const double missing = ratio - report.achieved_ratio;
  if (missing > ratio_tolerance) report.shortfall = missing;
  report.matrices = report_matrices(factored, config, selection.ranks, options);
  write_layers(writer, passes, factored, options, selection.ranks, samples.calibration);
  write_description(writer, model, selection.ranks, options, report.achieved_ratio);
  writer.commit();
  clock.finish("writing");

  report.heldout = evaluate(model, options, samples.heldout);
  clock.finish("evaluation");

  report.program = "ressvd-llm " RESSVD_VERSION_STRING;
  report.model = options.model.string();
  report.output = options.output.string();
  report.method = options.method;
  report.allocation = name_of(options.allocation);
  report.options = fingerprint(options);
  report.samples = {.count = samples.calibration.count(),
                    .length = samples.calibration.length,
                    .source = options.calibration.empty() ? "self" : options.calibration.string()};
  report.requested_ratio = options.ratio;
  report.choice = std::move(selection.how);
  if (options.method == "tempered") report.power = chosen.power;
  report.seconds = clock.seconds();
  report.fallbacks = engine->fallbacks();
  const checkpoint written = checkpoint::open(options.output);
  report.parameters = count_parameters(written);
  report.bytes = written.file_bytes();
  report.memory.peak = peak_memory();
  if (report.fallbacks.count > 0) {
    std::fprintf(stderr, "%lld decompositions by a second routine, the last: %s\n",
                 static_cast<long long>(report.fallbacks.count), report.fallbacks.last.c_str());
  }
  print_memory("peak memory", report.memory.peak);
  return report;
}

} // namespace ressvd_llm
