// SPDX-License-Identifier: Apache-2.0
#include "compress/compress.hpp"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <memory>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>
#include <ressvd/version.hpp>

#include "compress/curvature.hpp"
#include "compress/disk_estimate.hpp"
#include "compress/factored_model.hpp"
#include "compress/gram_file.hpp"
#include "compress/kept_results.hpp"
#include "compress/memory_estimate.hpp"
#include "compress/model_passes.hpp"
#include "compress/model_ranks.hpp"
#include "compress/power_search.hpp"
#include "compress/rank_selection.hpp"
#include "compress/resume.hpp"
#include "compress/samples.hpp"
#include "compress/sequential_refinement.hpp"
#include "compress/sequential_refit.hpp"
#include "compress/write_checkpoint.hpp"
#include "io/checkpoint_writer.hpp"
#include "io/error.hpp"
#include "io/gguf_model.hpp"
#include "model/comparison.hpp"
#include "model/device.hpp"
#include "ui/interruption.hpp"
#include "ui/progress.hpp"

namespace ressvd_llm {
namespace {

class stage_clock {
 public:
  void finish(const char* stage) {
    const auto now = std::chrono::steady_clock::now();
    seconds_.push_back({stage, std::chrono::duration<double>(now - start_).count()});
    start_ = now;
    return_freed_memory();
  }
  const std::vector<stage_time>& seconds() const { return seconds_; }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  std::vector<stage_time> seconds_;
};

void require_heldout(const compress_options& options, std::int64_t samples) {
  if (samples > 0) return;
  if (options.method == "tempered" && !options.power) {
    throw usage_error("--power auto needs held-out samples; the calibration text is too short");
  }
  if (options.allocation == allocation::sensitivity && rounds_of(options) > 1) {
    throw usage_error("--rounds above 1 needs held-out samples to judge the rounds");
  }
}

void check(const compress_options& options, const language_model& model) {
  const auto refuse = [](const std::string& what) { throw usage_error(what); };
  (void)method_of(options); // throws for a name that no method has
  if (options.format == output_format::gguf_adapter)
    throw std::invalid_argument("an adapter is what quantise_and_correct makes");
  if (model.config().compressed && model.config().compressed->format == "factored") {
    refuse(options.model.string() + ": is a factored checkpoint already");
  }
  if (options.format == output_format::gguf) {
    (void)gguf_architecture(model.config()); // throws where there is none
  } else if (options.type && is_quantised(*options.type)) {
    refuse("--dtype " + std::string(name_of(*options.type)) + " goes with --format gguf");
  }
  if (options.samples < 1 || options.seqlen < 2) {
    refuse("calibration needs at least 1 sample of 2 tokens, not " +
           std::to_string(options.samples) + " of " + std::to_string(options.seqlen));
  }
  if (!(options.ratio >= 0 && options.ratio < 1)) {
    refuse("--ratio " + std::to_string(options.ratio) + " is outside [0, 1)");
  }
  if (model.config().max_positions < 2) {
    throw file_error(model.config().file,
                     "a context of 1 token leaves nothing to predict, nor to judge a model by");
  }
  if (refines(options) && samples_of_refinement(options) < 2) {
    refuse("--refine needs at least 2 samples: one to train on, one to judge by");
  }
  require_heldout(options, options.heldout_samples);
}

// Whether a run with these options goes on from this state. Where it computes may change.
bool resumes(const std::string& state, const std::string& options) {
  const auto anywhere = [](const std::string& text) {
    auto fields = nlohmann::ordered_json::parse(text);
    fields.erase("backend");
    return fields;
  };
  return anywhere(run_state::from_text(state).options) == anywhere(options);
}

// The output, new or where an interrupted run left it.
checkpoint_writer open_output(const compress_options& options) {
  checkpoint_writer writer(
      options.output, options.model,
      {.resume = options.resume, .gguf = options.format == output_format::gguf});
  if (writer.resumed_state() && !resumes(*writer.resumed_state(), fingerprint(options))) {
    throw usage_error(options.output.string() +
                      ": the interrupted run had other options; start without --resume");
  }
  return writer;
}

std::string how_to_resume(const compress_options& options, const std::filesystem::path& partial) {
  const std::string command = options.resume_command;
  return partial.string() + " keeps what is done; " +
         (command.empty() ? "the same with --resume goes on from there"
                          : "to go on:\n  " + command);
}

// With the samples, the run has something to keep. Until then a request may turn out to be none.
calibration_samples samples_of_run(checkpoint_writer& writer, const compress_options& options,
                                   const language_model& model) {
  const auto file = writer.scratch() / "samples.json";
  if (writer.resumed_state()) return load_samples(file, model.config());
  calibration_samples samples = make_samples(options, model);
  require_heldout(options, samples.heldout.count());
  save_samples(file, samples);
  writer.mark(run_state{.options = fingerprint(options)}.to_text());
  return samples;
}

std::int64_t count_parameters(const checkpoint& source, const model_config& config) {
  std::int64_t parameters = 0;
  for (const std::string& name : parameter_names(source, config))
    parameters += source.describe(name).elements;
  return parameters;
}

// Writes the layers after the last mark; the others are in the partial checkpoint already. Returns
// what refinement made of them all.
std::optional<refinement_report> write_layers(checkpoint_writer& writer, model_passes& passes,
                                              const factored_model& factored,
                                              const compress_options& options,
                                              const model_ranks& ranks,
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
  std::optional<sequential_refinement> refinement;
  std::optional<refinement_report> report;
  if (refines(options)) {
    refinement.emplace(passes, options.refine, options.seed,
                       calibration.first(samples_of_refinement(options)));
    report = {refinement->training_windows(), refinement->heldout_windows(), {}};
  }
  const std::int64_t steps = 1 + (refinement ? refinement->steps() : 0);
  progress bar(refinement ? "refining" : "writing", config.layers * steps);
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    const auto scratch = writer.scratch() / ("updated-" + std::to_string(layer) + ".safetensors");
    std::int64_t left = steps;
    layer_weights weights;
    if (layer < state.next_layer) {
      if (refit || refinement) {
        weights = model.layer(layer);
        load_factors(scratch, config, layer, weights);
      }
      if (refinement) {
        refinement->skip(weights);
        if (const auto block = load_block(writer.scratch(), layer))
          report->blocks.push_back(*block);
      }
    } else {
      weights = refit ? refit->fit(ranks[layer]) : factored.layer(layer, ranks[layer]);
      if (refinement) {
        const auto stepped = [&] {
          --left;
          bar.advance();
        };
        if (const auto block = refinement->refine(weights, stepped)) {
          save_block(writer.scratch(), *block);
          report->blocks.push_back(*block);
        }
      }
      if (refit || refinement) save_factors(scratch, config, layer, weights, options.refine);
      write_layer(writer, model, layer, weights, options);
      mark(layer + 1);
    }
    if (refit) refit->pass(weights);
    bar.advance(left);
  }
  return report;
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
                                       const compress_options& options, const sample_set& heldout,
                                       const std::shared_ptr<device>& card) {
  if (heldout.count() == 0) return std::nullopt;
  const auto figures = compare_on_text({original, open_model(options.output, card)},
                                       cut_windows(heldout.ids, {.length = heldout.length}), card);
  return heldout_report{.windows = heldout.count(),
                        .tokens = heldout.tokens(),
                        .original_perplexity = figures[0].perplexity,
                        .compressed_perplexity = figures[1].perplexity,
                        .divergence = figures[1].divergence};
}

void print_size(const char* what, std::uint64_t bytes) {
  constexpr double mebi = 1024.0 * 1024.0;
  std::fprintf(stderr, "%s: %.0f MiB\n", what, static_cast<double>(bytes) / mebi);
}

void print_seconds(const std::vector<stage_time>& stages) {
  for (const stage_time& s : stages)
    std::fprintf(stderr, "%10.3f s  %s\n", s.seconds, s.stage.c_str());
}

label_options labels_of(const compress_options& options) {
  return {.source = options.text_labels ? label_source::next_token : label_source::drawn,
          .seed = options.seed};
}

// The file's sums beside what the run keeps, so that a resumed one does not need it.
void keep_gradients(const compress_options& options, const model_config& config,
                    const curvature_store& curvature) {
  const checkpoint source = checkpoint::open_file(options.gradients);
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    if (!curvature.contains(layer)) curvature.save(layer, read_gradients(source, config, layer));
  }
}

struct run_plan {
  double ratio = 0;      // of the layers' matrices, asked for
  double kept_share = 1; // of them, at most
  std::vector<ressvd::layer_candidate> candidates;
  candidate_ranks wanted;
};

run_plan plan_for(const compress_options& options, const language_model& model) {
  const model_config& config = model.config();
  run_plan plan;
  plan.ratio = matrix_ratio(options, config, model.source());
  plan.candidates = last_layer_choices(options, config, plan.ratio);
  plan.wanted = ranks_of_all(plan.candidates, config, options);
  // Coarse multiples of a rank keep more than what is asked for.
  plan.kept_share = 1 - plan.ratio;
  auto possible = plan.candidates;
  if (possible.empty()) possible.push_back({config.layers, plan.ratio});
  for (const ressvd::layer_candidate& candidate : possible) {
    const double removed =
        achieved_ratio(ranks_of(candidate, config, options), config, options.form);
    plan.kept_share = (std::max)(plan.kept_share, 1 - removed);
  }
  if (!options.grams.empty()) gram_file(options.grams).require(config, plan.wanted);
  return plan;
}

// A card for the run, or none, and what the model's matrices may keep of its memory.
struct run_device {
  std::shared_ptr<device> card;
  card_forward_options options;
};

// What passes and factoring leave to the matrices.
void plan_card(run_device& on, const compress_options& options, const model_config& config,
               const memory_estimate& host, compression_report& report) {
  const std::int64_t length = (std::min)(options.seqlen, config.max_positions);
  const card_memory pass = estimate_card_memory(config, precision_of(config, options.device),
                                                samples_needed(options), length, 1, on.options);
  const std::uint64_t taken =
      host.hidden_states + pass.buffers + pass.layers + host.grams + host.factoring;
  const std::uint64_t available = memory_of(*on.card);
  on.options.weight_bytes =
      (std::min)(pass.weights, available > taken ? available - taken : std::uint64_t{0});
  report.memory.card_estimate = taken + on.options.weight_bytes;
  print_size("estimated peak device memory", report.memory.card_estimate);
}

void estimate(const checkpoint_writer& writer, const compress_options& options,
              const language_model& model, const run_plan& plan, run_device& on,
              compression_report& report) {
  const model_config& config = model.config();
  const std::int64_t parameters = count_parameters(model.source(), config);
  // A product has as many as what it replaces.
  const double removed = options.format == output_format::factored ? 1 - plan.kept_share : 0;
  const auto sizes = layer_parameters(config);
  const auto matrices = std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0});
  const auto output =
      parameters - static_cast<std::int64_t>(removed * static_cast<double>(matrices));
  const memory_estimate memory =
      estimate_memory(options, config, model.storage() == weight_storage::float32,
                      static_cast<std::uint64_t>(parameters), static_cast<std::uint64_t>(output));
  report.memory.estimate = report.memory.program + memory.total();
  print_size("estimated peak memory", report.memory.estimate);
  if (on.card != nullptr) plan_card(on, options, config, memory, report);
  report.disk_estimate =
      estimate_disk(options, config, model.source(), plan.wanted, plan.kept_share).total();
  print_size("estimated disk", report.disk_estimate);
  require_disk(writer.partial(), report.disk_estimate);
}

// From the samples to the finished output. Returns the held-out samples.
sample_set write_output(checkpoint_writer& writer, const language_model& model,
                        const compress_options& options, const run_plan& plan, const run_device& on,
                        compression_report& report, stage_clock& clock) {
  calibration_samples samples = samples_of_run(writer, options, model);
  kept_results kept(writer.scratch() / "measured.jsonl");
  clock.finish("sampling");

  model_passes passes =
      on.card == nullptr
          ? model_passes(model)
          : model_passes(model, make_forward_engine(model.config(), on.card, on.options));
  const auto engine = make_factoring_engine(options, on.card);
  compress_options chosen = options; // with the power of tempered whitening
  if (options.method == "tempered" && !options.power) {
    const power_choice power =
        search_power(passes, *engine, options, plan.ratio, samples, writer.scratch(), kept);
    chosen.power = power.power;
    report.power_curve = power.curve;
    clock.finish("power search");
  }
  if (options.method == "tempered") report.power = chosen.power;
  const curvature_store curvature(writer.scratch());
  if (needs_curvature(options)) {
    if (options.gradients.empty()) {
      gather_curvature(passes, *engine, samples.calibration.first(samples_of_curvature(options)),
                       labels_of(options), curvature);
    } else {
      keep_gradients(options, model.config(), curvature);
    }
    clock.finish("gradients");
  }
  const factored_model factored =
      factor_model(passes, *engine, chosen, samples.calibration, plan.wanted, writer.scratch(),
                   needs_curvature(options) ? &curvature : nullptr);
  clock.finish("factoring");

  rank_selection selection =
      select_ranks(passes, factored, options, plan.ratio, plan.candidates, samples, kept);
  clock.finish("choosing ranks");

  report.achieved_ratio = achieved_ratio(selection.ranks, model.config(), options.form);
  const double missing = plan.ratio - report.achieved_ratio;
  if (missing > ratio_tolerance) report.shortfall = missing;
  report.matrices = report_matrices(factored, model.config(), selection.ranks, options);
  report.refinement =
      write_layers(writer, passes, factored, options, selection.ranks, samples.calibration);
  write_description(writer, model, selection.ranks, options, report.achieved_ratio);
  {
    const interruption_hold until_scratch_is_gone;
    writer.commit();
  }
  clock.finish(refines(options) ? "refining" : "writing");

  report.samples = {.count = samples.calibration.count(),
                    .length = samples.calibration.length,
                    .source = options.calibration.empty() ? "self" : options.calibration.string(),
                    .self = samples_needed(options) * options.self_samples / all_samples(options)};
  report.choice = std::move(selection.how);
  report.fallbacks = engine->fallbacks();
  return std::move(samples.heldout);
}

} // namespace

compression_report compress(const compress_options& asked) {
  stage_clock clock;
  compression_report report;
  report.memory.program = peak_memory(); // and its libraries: CUDA's alone take 200 MiB
  compress_options options = asked;
  run_device on;
  if (options.backend != backend_choice::cpu) {
    on.card = choose_device(options.backend, options.device, read_config(options.model));
    options.backend = on.card != nullptr ? backend_choice::cuda : backend_choice::cpu;
  }
  const language_model model = open_model(options.model, on.card);
  check(options, model);
  const run_plan plan = plan_for(options, model);
  checkpoint_writer writer = open_output(options);
  estimate(writer, options, model, plan, on, report);

  const interruption_notice notice(
      "interrupted: " + how_to_resume(options, writer.partial()),
      options.format == output_format::gguf ? options.output : options.output / "config.json",
      "interrupted in the evaluation: " + options.output.string() + " is complete");
  sample_set heldout;
  try {
    heldout = write_output(writer, model, options, plan, on, report, clock);
  } catch (...) {
    if (writer.resumable()) {
      std::fprintf(stderr, "%s\n", how_to_resume(options, writer.partial()).c_str());
    }
    throw;
  }
  try {
    report.heldout = evaluate(model, options, heldout, on.card);
  } catch (const std::exception& error) {
    report.evaluation_error = error.what();
  }
  clock.finish("evaluation");

  report.program = "ressvd-llm " RESSVD_VERSION_STRING;
  report.model = options.model.string();
  report.output = options.output.string();
  report.method = options.method;
  report.allocation = name_of(options.allocation);
  report.options = fingerprint(options);
  report.requested_ratio = options.ratio;
  report.seconds = clock.seconds();
  const checkpoint written = checkpoint::open(options.output);
  report.parameters = count_parameters(written, model.config());
  report.bytes = written.file_bytes();
  report.without_tokenizer =
      options.format == output_format::gguf && !has_gguf_tokenizer(options.output);
  report.memory.peak = peak_memory();
  if (report.fallbacks.count > 0) {
    std::fprintf(stderr, "%lld decompositions by a second routine, the last: %s\n",
                 static_cast<long long>(report.fallbacks.count), report.fallbacks.last.c_str());
  }
  print_size("peak memory", report.memory.peak);
  if (on.card != nullptr) {
    report.memory.card_peak = peak_memory_of(*on.card);
    print_size("peak device memory", report.memory.card_peak);
  }
  if (options.profile) print_seconds(report.seconds);
  return report;
}

} // namespace ressvd_llm
