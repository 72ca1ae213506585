// SPDX-License-Identifier: Apache-2.0
#include "compress/options.hpp"

#include <algorithm>

#include <nlohmann/json.hpp>

namespace ressvd_llm {

const char* name_of(allocation a) {
  switch (a) {
    case allocation::uniform:
      return "uniform";
    case allocation::last_layers:
      return "last-layers";
    case allocation::importance:
      return "importance";
    case allocation::sensitivity:
      return "sensitivity";
    case allocation::fisher:
      return "fisher";
  }
  return "";
}

const char* name_of(output_format format) {
  switch (format) {
    case output_format::factored:
      return "factored";
    case output_format::dense:
      return "dense";
    case output_format::gguf:
      return "gguf";
    case output_format::gguf_adapter:
      return "gguf-adapter";
  }
  return "";
}

const char* name_of(ressvd::factored_form form) {
  return form == ressvd::factored_form::pair ? "pair" : "pivoted";
}

namespace {

std::int64_t samples_beside_grams(const compress_options& o) {
  switch (o.allocation) {
    case allocation::uniform:
      break;
    case allocation::last_layers:
      return o.last_layers ? 0 : (std::min)(all_samples(o), o.search_samples);
    case allocation::importance:
      return all_samples(o);
    case allocation::sensitivity:
      return (std::min)(all_samples(o), o.probe_samples);
    case allocation::fisher:
      return (std::min)(all_samples(o), o.search_samples);
  }
  return 0;
}

} // namespace

std::int64_t samples_of_curvature(const compress_options& o) {
  if (!needs_curvature(o) || !o.gradients.empty()) return 0;
  // More change the perplexities by less than 0.3 % (docs/results.md), and each costs as much as
  // five that only pass forwards.
  constexpr std::int64_t few = 32;
  return (std::min)(all_samples(o), o.curvature_samples.value_or((std::max)(few, o.samples / 4)));
}

std::int64_t samples_of_refinement(const compress_options& o) {
  if (!refines(o)) return 0;
  constexpr std::int64_t most = 256; // their states are in memory
  return (std::min)(all_samples(o), o.refine.samples.value_or(most));
}

std::int64_t samples_needed(const compress_options& o) {
  if (o.grams.empty() || refits(o)) return all_samples(o);
  return (std::max)({samples_beside_grams(o), samples_of_curvature(o), samples_of_refinement(o)});
}

std::string fingerprint(const compress_options& o) {
  nlohmann::ordered_json fields{
      {"model", std::filesystem::weakly_canonical(o.model).string()},
      {"ratio", o.ratio},
      {"count_all", o.count_all},
      {"method", o.method},
      {"allocation", name_of(o.allocation)},
      {"step", o.step},
      {"asvd_alpha", o.asvd_alpha},
      {"update", o.update},
      {"retruncate", o.retruncate},
      {"update_target", target_mix(o)},
      {"ridge", o.ridge},
      {"adasvd_iterations", o.adasvd_iterations},
      {"windows", o.windows == window_choice::random ? "random" : "first"},
      {"samples", o.samples},
      {"seqlen", o.seqlen},
      {"search_samples", o.search_samples},
      {"heldout_samples", o.heldout_samples},
      {"probe_samples", o.probe_samples},
      {"probe_ranks", o.probe_ranks},
      {"rounds", rounds_of(o)},
      {"backend", o.backend == backend_choice::cpu ? "cpu" : "cuda"}, // automatic: resolved by now
      {"rank_multiple", o.rank_multiple},
      {"form", name_of(o.form)},
      {"format", name_of(o.format)},
      {"seed", o.seed}};
  // What is not given is not there.
  if (o.last_layers) fields["last_layers"] = *o.last_layers;
  if (o.power) fields["power"] = *o.power;
  if (o.beta) fields["beta"] = *o.beta;
  if (o.method == "kfac-svd") {
    fields["input_power"] = o.input_power;
    fields["output_power"] = o.output_power;
  }
  if (needs_curvature(o)) {
    fields["curvature_ridge"] = o.curvature_ridge;
    fields["labels"] = o.text_labels ? "text" : "drawn";
    if (o.curvature_samples) fields["curvature_samples"] = *o.curvature_samples;
    if (!o.gradients.empty()) fields["gradients"] = o.gradients.string();
  }
  if (refines(o)) {
    fields["refine"] = o.refine.epochs;
    fields["refine_samples"] = samples_of_refinement(o);
    fields["refine_batch"] = o.refine.batch;
    fields["refine_rate"] = o.refine.rate;
    fields["refine_decay"] = o.refine.decay;
    fields["refine_anchor"] = o.refine.anchor;
    fields["refine_patience"] = o.refine.patience;
    fields["refine_dense"] = o.refine.dense;
    fields["refine_norms"] = o.refine.norms;
  }
  if (o.self_samples > 0) fields["self_samples"] = o.self_samples;
  if (o.minimum_retention) fields["minimum_retention"] = *o.minimum_retention;
  if (o.type) fields["type"] = std::string(name_of(*o.type));
  if (!o.fisher.empty()) fields["fisher"] = o.fisher.string();
  if (!o.grams.empty()) fields["grams"] = o.grams.string();
  if (!o.calibration.empty()) fields["calibration"] = o.calibration.string();
  return fields.dump();
}

} // namespace ressvd_llm
