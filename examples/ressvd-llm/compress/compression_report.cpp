// SPDX-License-Identifier: Apache-2.0
#include "compress/compression_report.hpp"

#include <algorithm>
#include <array>
#include <cstdio>

#include <nlohmann/json.hpp>

#include "io/json_text.hpp"

namespace ressvd_llm {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

ordered_json to_json(const loss_report& loss) {
  return {{"absolute", loss.absolute}, {"relative", loss.relative}};
}

std::optional<loss_report> read_loss(const json& matrix, const char* key) {
  if (!matrix.contains(key)) return std::nullopt;
  return loss_report{matrix[key].at("absolute"), matrix[key].at("relative")};
}

ordered_json to_json(const matrix_report& matrix) {
  ordered_json j{{"name", matrix.name}, {"rows", matrix.rows}, {"cols", matrix.cols}};
  if (!matrix.factors) {
    j["rank"] = nullptr;
    return j;
  }
  const factors_report& f = *matrix.factors;
  j["rank"] = f.rank;
  j["intermediate_rank"] = f.intermediate_rank;
  if (f.weight_loss) j["weight_loss"] = to_json(*f.weight_loss);
  if (f.activation_loss) j["activation_loss"] = to_json(*f.activation_loss);
  if (f.curvature_loss) j["curvature_loss"] = *f.curvature_loss;
  if (f.whitening) {
    const whitening_summary& w = *f.whitening;
    j["whitening"] = {{"path", w.path},
                      {"damping", w.damping},
                      {"relative_damping", number_or_null(w.relative_damping)},
                      {"condition", number_or_null(w.condition)}};
  }
  j["numerical_rank"] = f.numerical_rank;
  j["seconds"] = f.seconds;
  return j;
}

matrix_report read_matrix(const json& j) {
  matrix_report matrix{j.at("name"), j.at("rows"), j.at("cols"), std::nullopt};
  if (j.at("rank").is_null()) return matrix;
  factors_report& f = matrix.factors.emplace();
  f.rank = j.at("rank");
  f.intermediate_rank = j.value("intermediate_rank", f.rank);
  f.weight_loss = read_loss(j, "weight_loss");
  f.activation_loss = read_loss(j, "activation_loss");
  if (j.contains("curvature_loss")) f.curvature_loss = j["curvature_loss"].get<double>();
  // Earlier versions wrote an empty path where nothing was whitened.
  if (j.contains("whitening") && j["whitening"].at("path") != "") {
    const json& w = j["whitening"];
    f.whitening = whitening_summary{w.at("path"), w.at("damping"),
                                    number_or_infinity(w.at("relative_damping")),
                                    number_or_infinity(w.at("condition"))};
  }
  f.numerical_rank = j.value("numerical_rank", f.rank);
  f.seconds = j.value("seconds", 0.0);
  return matrix;
}

ordered_json to_json(const allocation_report& choice) {
  auto j = ordered_json::object();
  if (choice.last_layers) j["last_layers"] = *choice.last_layers;
  for (const last_layers_trial& t : choice.search) {
    j["search"].push_back({{"last_layers", t.last_layers},
                           {"layer_ratio", t.layer_ratio},
                           {"final_layer_error", t.final_layer_error}});
  }
  if (!choice.layer_ratios.empty()) j["layer_ratios"] = choice.layer_ratios;
  for (const probe_report& p : choice.probes) {
    j["probes"].push_back({{"name", p.name},
                           {"rank", p.rank},
                           {"divergence", p.divergence},
                           {"sensitivity", p.sensitivity},
                           {"exponent", p.exponent}});
  }
  if (choice.loss) {
    j["predicted_loss"] = choice.loss->predicted;
    j["loss_bound"] = choice.loss->bound;
    j["measured_loss"] = choice.loss->measured;
  }
  for (const probing_round& r : choice.rounds) {
    j["rounds"].push_back({{"round", r.round},
                           {"trust", r.trust},
                           {"heldout_divergence", r.heldout_divergence},
                           {"accepted", r.accepted}});
  }
  for (const curvature_round& r : choice.curvature_rounds) {
    j["curvature_rounds"].push_back({{"round", r.round},
                                     {"trust", r.trust},
                                     {"divergence", r.divergence},
                                     {"accepted", r.accepted}});
  }
  return j;
}

// The elements of an array that may be missing.
json::array_t list(const json& object, const char* key) {
  return object.contains(key) ? object[key].get<json::array_t>() : json::array_t{};
}

allocation_report read_allocation(const json& j) {
  (void)j.get_ref<const json::object_t&>(); // throws for anything else
  allocation_report choice;
  if (j.contains("last_layers")) choice.last_layers = j["last_layers"].get<std::int64_t>();
  for (const json& t : list(j, "search")) {
    choice.search.push_back(
        {t.at("last_layers"), t.value("layer_ratio", 0.0), t.at("final_layer_error")});
  }
  for (const json& ratio : list(j, "layer_ratios"))
    choice.layer_ratios.push_back(ratio);
  for (const json& p : list(j, "probes")) {
    choice.probes.push_back({p.at("name"), p.at("rank"), p.at("divergence"), p.at("sensitivity"),
                             p.value("exponent", 1.0)});
  }
  if (j.contains("predicted_loss")) {
    choice.loss = {j["predicted_loss"], j.value("loss_bound", 0.0), j.value("measured_loss", 0.0)};
  }
  for (const json& r : list(j, "rounds")) {
    choice.rounds.push_back(
        {r.at("round"), r.value("trust", 0.0), r.at("heldout_divergence"), r.at("accepted")});
  }
  for (const json& r : list(j, "curvature_rounds")) {
    choice.curvature_rounds.push_back(
        {r.at("round"), r.at("trust"), r.at("divergence"), r.at("accepted")});
  }
  return choice;
}

} // namespace

std::string summary_of(const refinement_report& report) {
  block_error before;
  block_error after;
  double seconds = 0;
  std::size_t refined = 0;
  const auto count = static_cast<double>((std::max)(report.blocks.size(), std::size_t{1}));
  for (const refined_block& block : report.blocks) {
    before.training += block.before.training / count;
    before.heldout += block.before.heldout / count;
    after.training += block.after.training / count;
    after.heldout += block.after.heldout / count;
    seconds += block.seconds;
    refined += block.epochs > 0 ? 1 : 0;
  }
  std::array<char, 240> text{};
  std::snprintf(text.data(), text.size(),
                "refined %zu of %zu blocks in %.0f s: mean error of their outputs %.5f, before "
                "%.5f; on held-out windows %.5f, before %.5f",
                refined, report.blocks.size(), seconds, after.training, before.training,
                after.heldout, before.heldout);
  return text.data();
}

std::string compression_report::refit() const {
  const json fields = json::parse(options);
  for (const char* kind : {"retruncate", "update"}) {
    if (fields.value(kind, false)) return kind;
  }
  return {};
}

double compression_report::total_seconds() const {
  double sum = 0;
  for (const stage_time& s : seconds)
    sum += s.seconds;
  return sum;
}

ordered_json to_json(const refined_block& b) {
  const auto error = [](const block_error& e) {
    return ordered_json{{"training", number_or_null(e.training)},
                        {"heldout", number_or_null(e.heldout)}};
  };
  return {{"layer", b.layer},
          {"before", error(b.before)},
          {"after", error(b.after)},
          {"epochs", b.epochs},
          {"trained_epochs", b.trained_epochs},
          {"halvings", b.halvings},
          {"rate", b.rate},
          {"seconds", b.seconds}};
}

refined_block refined_block_from_json(const json& j) {
  const auto error = [](const json& e) {
    return block_error{number_or_infinity(e.at("training")), number_or_infinity(e.at("heldout"))};
  };
  return {j.at("layer"),
          error(j.at("before")),
          error(j.at("after")),
          j.at("epochs"),
          j.value("trained_epochs", j.at("epochs").get<std::int64_t>()),
          j.at("halvings"),
          j.at("rate"),
          j.at("seconds")};
}

ordered_json to_json(const refinement_report& r) {
  ordered_json j{{"training_windows", r.training_windows},
                 {"heldout_windows", r.heldout_windows},
                 {"blocks", ordered_json::array()}};
  for (const refined_block& block : r.blocks)
    j["blocks"].push_back(to_json(block));
  return j;
}

ordered_json to_json(const compression_report& r) {
  ordered_json j{{"program", r.program},
                 {"model", r.model},
                 {"output", r.output},
                 {"options", ordered_json::parse(r.options)},
                 {"samples",
                  {{"count", r.samples.count},
                   {"length", r.samples.length},
                   {"source", r.samples.source},
                   {"self", r.samples.self}}},
                 {"requested_ratio", r.requested_ratio},
                 {"achieved_ratio", r.achieved_ratio}};
  if (r.shortfall) j["ratio_shortfall"] = *r.shortfall;
  j["allocation"] = to_json(r.choice);
  if (r.power) j["power"] = *r.power;
  for (const power_trial& p : r.power_curve) {
    j["power_curve"].push_back({{"power", p.power}, {"heldout_divergence", p.heldout_divergence}});
  }
  j["matrices"] = ordered_json::array();
  for (const matrix_report& matrix : r.matrices)
    j["matrices"].push_back(to_json(matrix));
  if (r.refinement) j["refinement"] = to_json(*r.refinement);
  if (r.heldout) {
    j["heldout"] = {{"windows", r.heldout->windows},
                    {"tokens", r.heldout->tokens},
                    {"original_perplexity", r.heldout->original_perplexity},
                    {"compressed_perplexity", r.heldout->compressed_perplexity},
                    {"divergence", r.heldout->divergence}};
  }
  if (r.without_tokenizer) j["without_tokenizer"] = true;
  if (r.evaluation_error) j["evaluation_error"] = *r.evaluation_error;
  j["seconds"] = ordered_json::object();
  for (const stage_time& s : r.seconds)
    j["seconds"][s.stage] = s.seconds;
  j["memory"] = {{"program_bytes", r.memory.program},
                 {"estimate_bytes", r.memory.estimate},
                 {"peak_bytes", r.memory.peak}};
  if (r.memory.card_estimate > 0) {
    j["memory"]["device_estimate_bytes"] = r.memory.card_estimate;
    j["memory"]["device_peak_bytes"] = r.memory.card_peak;
  }
  j["disk"] = {{"estimate_bytes", r.disk_estimate}};
  if (r.fallbacks.count > 0) {
    j["fallbacks"] = {{"count", r.fallbacks.count}, {"last", r.fallbacks.last}};
  }
  j["parameters"] = r.parameters;
  j["bytes"] = r.bytes;
  return j;
}

compression_report compression_report_from_json(const json& j) {
  compression_report r;
  r.program = j.value("program", "");
  r.model = j.value("model", "");
  r.output = j.value("output", "");
  const json& options = j.at("options");
  r.method = options.at("method");
  r.allocation = options.at("allocation");
  r.options = options.dump();
  if (j.contains("samples")) {
    const json& s = j["samples"];
    r.samples = {s.at("count"), s.at("length"), s.at("source"), s.value("self", std::int64_t{0})};
  }
  r.requested_ratio = j.at("requested_ratio");
  r.achieved_ratio = j.value("achieved_ratio", r.requested_ratio);
  if (j.contains("ratio_shortfall")) r.shortfall = j["ratio_shortfall"].get<double>();
  r.choice = read_allocation(j.at("allocation"));
  if (j.contains("power")) r.power = j["power"].get<double>();
  for (const json& p : list(j, "power_curve"))
    r.power_curve.push_back({p.at("power"), p.at("heldout_divergence")});
  for (const json& matrix : j.at("matrices"))
    r.matrices.push_back(read_matrix(matrix));
  if (j.contains("refinement")) {
    const json& refinement = j["refinement"];
    r.refinement = {refinement.at("training_windows"), refinement.at("heldout_windows"), {}};
    for (const json& block : refinement.at("blocks"))
      r.refinement->blocks.push_back(refined_block_from_json(block));
  }
  // Earlier versions wrote null where nothing was evaluated.
  if (j.contains("heldout") && !j["heldout"].is_null()) {
    const json& h = j["heldout"];
    r.heldout = {h.value("windows", std::int64_t{0}), h.value("tokens", std::int64_t{0}),
                 h.at("original_perplexity"), h.at("compressed_perplexity"), h.at("divergence")};
  }
  r.without_tokenizer = j.value("without_tokenizer", false);
  if (j.contains("evaluation_error")) r.evaluation_error = j["evaluation_error"].get<std::string>();
  for (const auto& [stage, seconds] : j.at("seconds").items())
    r.seconds.push_back({stage, seconds});
  if (j.contains("memory")) {
    const json& m = j["memory"];
    r.memory = {m.value("program_bytes", std::uint64_t{0}), m.at("estimate_bytes"),
                m.at("peak_bytes"), m.value("device_estimate_bytes", std::uint64_t{0}),
                m.value("device_peak_bytes", std::uint64_t{0})};
  }
  if (j.contains("disk")) r.disk_estimate = j["disk"].at("estimate_bytes");
  if (j.contains("fallbacks")) {
    r.fallbacks = {j["fallbacks"].at("count"), j["fallbacks"].at("last")};
  }
  r.parameters = j.at("parameters");
  r.bytes = j.at("bytes");
  return r;
}

} // namespace ressvd_llm
