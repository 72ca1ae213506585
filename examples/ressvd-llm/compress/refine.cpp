// SPDX-License-Identifier: Apache-2.0
#include "compress/refine.hpp"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <optional>
#include <utility>

#include <nlohmann/json.hpp>

#include "compress/disk_estimate.hpp"
#include "compress/memory_estimate.hpp"
#include "compress/model_passes.hpp"
#include "compress/resume.hpp"
#include "compress/samples.hpp"
#include "compress/sequential_refinement.hpp"
#include "compress/write_checkpoint.hpp"
#include "io/checkpoint_writer.hpp"
#include "io/error.hpp"
#include "io/gguf_model.hpp"
#include "model/evaluation.hpp"
#include "ui/interruption.hpp"
#include "ui/progress.hpp"

namespace ressvd_llm {
namespace {

// Embeddings are kept by a compression, at most rounded to another type.
constexpr double embedding_tolerance = 0.02;

std::vector<std::int64_t> shape_of(const model_config& c) {
  return {static_cast<std::int64_t>(c.family),
          c.layers,
          c.hidden_size,
          c.intermediate_size,
          c.heads,
          c.kv_heads,
          c.head_dim,
          c.vocab,
          c.experts,
          c.experts_per_token,
          c.expert_intermediate_size};
}

// The ranks of the checkpoint's matrices.
model_ranks ranks_of_model(const language_model& model) {
  const model_config& config = model.config();
  model_ranks ranks(config.layers);
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    for (const linear_module& module : linear_modules(config, layer)) {
      const auto rank = rank_of(model.source(), module);
      ranks[layer].push_back({rank.value_or((std::min)(module.out, module.in)), !rank});
    }
  }
  return ranks;
}

bool any_factored(const model_ranks& ranks, std::int64_t layers) {
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    if (!std::ranges::all_of(ranks[layer], &ressvd::rank_choice::dense)) return true;
  }
  return false;
}

void require_compressed_of(const language_model& original, const language_model& compressed,
                           const std::string& original_name, const std::string& name) {
  if (any_factored(ranks_of_model(original), original.config().layers))
    throw usage_error(original_name + ": is a factored checkpoint, not an original");
  if (shape_of(original.config()) != shape_of(compressed.config()))
    throw usage_error(name + ": its shape is not that of " + original_name);
  if (!any_factored(ranks_of_model(compressed), compressed.config().layers))
    throw usage_error(name + ": has no factors to refine");
}

void require_same_embeddings(const language_model& original, const language_model& compressed,
                             const sample_set& samples, const std::string& name) {
  const sample_set one = samples.first(1);
  if (relative_error(model_passes(original).embed(one), model_passes(compressed).embed(one)) >
      embedding_tolerance)
    throw usage_error(name + ": its embeddings are not those of " +
                      original.source().path().string());
}

std::string options_of(const refine_run& options) {
  auto fields = nlohmann::ordered_json::parse(fingerprint(options.run));
  fields["compressed"] = std::filesystem::weakly_canonical(options.compressed).string();
  return fields.dump();
}

// Samples for the refinement alone.
compress_options run_of(const refine_run& options) {
  compress_options run = options.run;
  run.refine.samples = samples_of_refinement(run);
  if (run.calibration.empty()) run.samples = *run.refine.samples;
  run.allocation = allocation::uniform;
  run.method = "svd";
  return run;
}

std::uint64_t bytes_in_memory(const language_model& model) {
  std::int64_t parameters = 0;
  for (const std::string& name : parameter_names(model.source(), model.config()))
    parameters += model.source().describe(name).elements;
  const std::int64_t held = model.storage() == weight_storage::float32
                                ? parameters
                                : parameters / (std::max)(model.config().layers, std::int64_t{1});
  return 4 * static_cast<std::uint64_t>(held);
}

calibration_samples samples_of_run(checkpoint_writer& writer, const compress_options& run,
                                   const std::string& fields, const language_model& model) {
  const auto file = writer.scratch() / "samples.json";
  if (writer.resumed_state()) return load_samples(file, model.config());
  calibration_samples samples = make_samples(run, model, samples_of_refinement(run));
  save_samples(file, samples);
  writer.mark(run_state{.options = fields}.to_text());
  return samples;
}

// What the checkpoint's own config says of its compression.
compress_options written_as(const refine_run& options, const language_model& compressed) {
  compress_options as = options.run;
  as.model = options.compressed;
  as.format = output_format::factored;
  if (const auto& info = compressed.config().compressed) {
    as.method = info->method;
    as.form =
        info->form == "pivoted" ? ressvd::factored_form::pivoted : ressvd::factored_form::pair;
  }
  return as;
}

refinement_report write_layers(checkpoint_writer& writer, model_passes& passes,
                               const language_model& compressed, const compress_options& as,
                               const std::string& fields, const sample_set& samples) {
  const model_config& config = compressed.config();
  const model_ranks ranks = ranks_of_model(compressed);
  run_state state{.options = fields};
  if (writer.resumed_state()) state = run_state::from_text(*writer.resumed_state());
  const auto mark = [&](std::int64_t next) {
    state.next_layer = next;
    writer.mark(state.to_text());
  };
  if (state.next_layer < 0) {
    write_kept_tensors(writer, compressed, ranks, as);
    mark(0);
  }
  sequential_refinement refinement(passes, as.refine, as.seed, samples);
  refinement_report report{refinement.training_windows(), refinement.heldout_windows(), {}};
  const std::int64_t steps = 1 + refinement.steps();
  progress bar("refining", config.layers * steps);
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    const auto scratch = writer.scratch() / ("updated-" + std::to_string(layer) + ".safetensors");
    std::int64_t left = steps;
    layer_weights weights = compressed.layer(layer);
    if (layer < state.next_layer) {
      load_factors(scratch, config, layer, weights);
      refinement.skip(weights);
      if (const auto block = load_block(writer.scratch(), layer)) report.blocks.push_back(*block);
    } else {
      const auto stepped = [&] {
        --left;
        bar.advance();
      };
      if (const auto block = refinement.refine(weights, stepped)) {
        save_block(writer.scratch(), *block);
        report.blocks.push_back(*block);
      }
      save_factors(scratch, config, layer, weights, as.refine);
      write_layer(writer, compressed, layer, weights, as);
      mark(layer + 1);
    }
    bar.advance(left);
  }
  const auto& info = config.compressed;
  write_description(writer, compressed, ranks, as, info ? info->ratio : 0.0);
  return report;
}

std::vector<text_figures> evaluate_refined(const language_model& original,
                                           const language_model& compressed,
                                           const std::filesystem::path& output,
                                           const sample_set& heldout) {
  if (heldout.count() == 0) return {};
  return compare_on_text({original, compressed, language_model::open(output)},
                         cut_windows(heldout.ids, {.length = heldout.length}));
}

} // namespace

refine_report refine(const refine_run& options) {
  const auto start = std::chrono::steady_clock::now();
  const std::string fields = options_of(options);
  const compress_options run = run_of(options);
  const std::string name = options.compressed.string();
  if (is_gguf(options.compressed))
    throw usage_error(name + ": a GGUF file has no factors to refine");
  const language_model original = language_model::open(run.model);
  const language_model compressed = language_model::open(options.compressed);
  require_compressed_of(original, compressed, run.model.string(), name);
  const std::int64_t windows = samples_of_refinement(run);
  if (windows < 2)
    throw usage_error("refinement needs at least 2 samples: one to train on, one to judge by");

  checkpoint_writer writer(run.output, options.compressed, {.resume = run.resume});
  if (writer.resumed_state() && run_state::from_text(*writer.resumed_state()).options != fields)
    throw usage_error(run.output.string() +
                      ": the interrupted run had other options; start without --resume");
  refine_report report{.original = run.model.string(),
                       .compressed = name,
                       .output = run.output.string(),
                       .options = fields,
                       .refinement = {},
                       .heldout = {}};
  const std::int64_t length = (std::min)(run.seqlen, original.config().max_positions);
  report.memory_estimate =
      peak_memory() + bytes_in_memory(original) + bytes_in_memory(compressed) +
      forward_buffers(original.config(), length, thread_count()) +
      estimate_refinement_memory(run.refine, original.config(), windows, length);
  std::fprintf(stderr, "estimated peak memory: %.0f MiB\n",
               static_cast<double>(report.memory_estimate) / (1 << 20));
  // Twice while it is put together, and factors in float32 for --resume.
  require_disk(writer.partial(),
               2 * compressed.source().file_bytes() +
                   4 * static_cast<std::uint64_t>(bytes_in_memory(compressed) / 4));

  const std::string how = writer.partial().string() +
                          " keeps what is done; the same with --resume "
                          "goes on from there";
  const interruption_notice notice(
      "interrupted: " + how, run.output / "config.json",
      "interrupted in the evaluation: " + run.output.string() + " is complete");
  calibration_samples samples;
  try {
    samples = samples_of_run(writer, run, fields, original);
    require_same_embeddings(original, compressed, samples.calibration, name);
    model_passes passes(original);
    compress_options as = written_as(options, compressed);
    as.refine = run.refine;
    report.refinement = write_layers(writer, passes, compressed, as, fields, samples.calibration);
    const interruption_hold until_scratch_is_gone;
    writer.commit();
  } catch (...) {
    if (writer.resumable()) std::fprintf(stderr, "%s\n", how.c_str());
    throw;
  }
  report.heldout_tokens = samples.heldout.tokens();
  report.heldout = evaluate_refined(original, compressed, run.output, samples.heldout);
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  report.memory_peak = peak_memory();
  return report;
}

nlohmann::ordered_json to_json(const refine_report& r) {
  nlohmann::ordered_json json{{"original", r.original},
                              {"compressed", r.compressed},
                              {"output", r.output},
                              {"options", nlohmann::ordered_json::parse(r.options)},
                              {"refinement", to_json(r.refinement)}};
  if (!r.heldout.empty()) {
    nlohmann::ordered_json heldout{{"tokens", r.heldout_tokens}};
    for (std::size_t i = 0; i < r.heldout.size(); ++i) {
      const char* const name = i == 0 ? "original" : i == 1 ? "compressed" : "refined";
      heldout[name] = {{"perplexity", r.heldout[i].perplexity},
                       {"divergence", r.heldout[i].divergence}};
    }
    json["heldout"] = std::move(heldout);
  }
  json["seconds"] = r.seconds;
  json["memory"] = {{"estimate_bytes", r.memory_estimate}, {"peak_bytes", r.memory_peak}};
  return json;
}

} // namespace ressvd_llm
