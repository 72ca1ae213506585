// SPDX-License-Identifier: Apache-2.0
#include "compress/layer_store.hpp"

#include <nlohmann/json.hpp>

#include "compress/scratch_file.hpp"
#include "io/json_text.hpp"
#include "io/output_file.hpp"
#include "io/paths.hpp"

namespace ressvd_llm {
namespace {

using nlohmann::ordered_json;

using state = ressvd::factored_state<float>;
using stage = ressvd::residual_stage<std::vector<float>>;

ordered_json to_json(const ressvd::whitening_report& w) {
  return {{"path", static_cast<int>(w.path)},
          {"damping", w.damping},
          {"relative_damping", number_or_null(w.relative_damping)},
          {"condition", number_or_null(w.condition)}};
}

ressvd::whitening_report whitening_from_json(const ordered_json& j) {
  return {.path = static_cast<ressvd::whitening_path>(j.at("path").get<int>()),
          .damping = j.at("damping"),
          .relative_damping = number_or_infinity(j.at("relative_damping")),
          .condition = number_or_infinity(j.at("condition"))};
}

ordered_json to_json(const stage& s) {
  ordered_json j{{"rank", s.rank},
                 {"intermediate_rank", s.intermediate_rank},
                 {"weight_energy", s.weight_energy}};
  if (s.activation_energy) j["activation_energy"] = *s.activation_energy;
  return j;
}

stage stage_from_json(const ordered_json& j) {
  stage s{.rank = j.at("rank"),
          .intermediate_rank = j.at("intermediate_rank"),
          .weight_energy = j.at("weight_energy")};
  if (j.contains("activation_energy")) s.activation_energy = j["activation_energy"].get<double>();
  return s;
}

// All but the matrices.
ordered_json to_json(const state& s) {
  ordered_json j{{"rows", s.rows},
                 {"cols", s.cols},
                 {"rank", s.rank},
                 {"acts", static_cast<int>(s.acts)},
                 {"singular_values", s.singular_values},
                 {"weight_losses", s.weight_losses},
                 {"activation_losses", s.activation_losses},
                 {"stages", ordered_json::array()},
                 {"numerical_rank", s.svd.numerical_rank},
                 {"seconds", s.seconds}};
  for (const stage& second : s.stages)
    j["stages"].push_back(to_json(second));
  if (s.whitening) j["whitening"] = to_json(*s.whitening);
  return j;
}

state state_from_json(const ordered_json& j) {
  state s;
  s.rows = j.at("rows");
  s.cols = j.at("cols");
  s.rank = j.at("rank");
  s.acts = static_cast<ressvd::projection>(j.at("acts").get<int>());
  s.singular_values = j.at("singular_values").get<std::vector<double>>();
  s.weight_losses = j.at("weight_losses").get<std::vector<double>>();
  s.activation_losses = j.at("activation_losses").get<std::vector<double>>();
  for (const auto& second : j.at("stages"))
    s.stages.push_back(stage_from_json(second));
  if (j.contains("whitening")) s.whitening = whitening_from_json(j["whitening"]);
  s.svd.numerical_rank = j.at("numerical_rank");
  s.seconds = j.at("seconds");
  return s;
}

// The matrices of a state by the names of their tensors.
template <class State, class Visit>
void for_each_tensor(const std::string& prefix, State& s, const Visit& visit) {
  const bool right = s.acts == ressvd::projection::right;
  visit(prefix, s.q, (right ? s.cols : s.rows) * s.rank);
  if (s.acts == ressvd::projection::both) visit(prefix + ".p", s.p, s.rank * s.cols);
  for (auto& second : s.stages) {
    const std::string name = prefix + ".residual." + std::to_string(second.rank);
    const auto rank = second.rank - second.intermediate_rank;
    visit(name, second.q, s.rows * rank);
    if (s.acts == ressvd::projection::both) visit(name + ".p", second.p, rank * s.cols);
  }
}

} // namespace

std::filesystem::path layer_store::tensors(std::int64_t layer) const {
  return directory_ / ("layer-" + std::to_string(layer) + ".safetensors");
}
std::filesystem::path layer_store::summary(std::int64_t layer) const {
  return directory_ / ("layer-" + std::to_string(layer) + ".json");
}

bool layer_store::contains(std::int64_t layer) const {
  return std::filesystem::exists(summary(layer));
}

void layer_store::save(const factored_layer& layer) const {
  std::vector<scratch_matrix> list;
  ordered_json matrices = ordered_json::array();
  for (const factored_module& m : layer.matrices) {
    for_each_tensor(m.module.prefix, m.state,
                    [&](const std::string& name, const auto& values, std::int64_t size) {
                      if (size > 0) list.push_back({name, {size}, values});
                    });
    ordered_json entry = to_json(m.state);
    if (!m.curvature_spectrum.empty()) entry["curvature_spectrum"] = m.curvature_spectrum;
    matrices.push_back(std::move(entry));
  }
  write_scratch(tensors(layer.index), list);
  // The summary comes last: where it stands, the layer is complete.
  write_whole_file(summary(layer.index),
                   ordered_json{{"similarity", layer.similarity}, {"matrices", matrices}}.dump());
}

factored_layer layer_store::load_summary(const model_config& config, std::int64_t layer) const {
  const auto text = read_text(summary(layer), std::uint64_t{1} << 32);
  const auto json = ordered_json::parse(text);
  factored_layer result{.index = layer, .similarity = json.at("similarity"), .matrices = {}};
  auto modules = linear_modules(config, layer);
  for (std::size_t i = 0; i < modules.size(); ++i) {
    const ordered_json& entry = json.at("matrices").at(i);
    factored_module m{std::move(modules[i]), state_from_json(entry)};
    if (entry.contains("curvature_spectrum"))
      m.curvature_spectrum = entry["curvature_spectrum"].get<std::vector<double>>();
    result.matrices.push_back(std::move(m));
  }
  return result;
}

factored_layer layer_store::load(const model_config& config, std::int64_t layer) const {
  factored_layer result = load_summary(config, layer);
  const checkpoint source = checkpoint::open_file(tensors(layer));
  for (factored_module& m : result.matrices) {
    for_each_tensor(m.module.prefix, m.state,
                    [&](const std::string& name, auto& values, std::int64_t size) {
                      if (size > 0) values = read_f32(source, name, {size});
                    });
  }
  return result;
}

} // namespace ressvd_llm
