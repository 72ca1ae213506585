// SPDX-License-Identifier: Apache-2.0
#include "compress/layer_store.hpp"

#include <cmath>
#include <limits>

#include <nlohmann/json.hpp>

#include "compress/scratch_file.hpp"
#include "io/output_file.hpp"
#include "io/paths.hpp"

namespace ressvd_llm {
namespace {

using nlohmann::ordered_json;

std::vector<float> read_matrix(const checkpoint& source, const std::string& name,
                               std::int64_t size) {
  return size == 0 ? std::vector<float>{} : read_f32(source, name, {size});
}

// JSON has no infinity.
ordered_json number(double value) {
  return std::isfinite(value) ? ordered_json(value) : ordered_json(nullptr);
}
double read_number(const ordered_json& value) {
  return value.is_null() ? std::numeric_limits<double>::infinity() : value.get<double>();
}

ordered_json to_json(const factored_matrix& m) {
  ordered_json stages = ordered_json::array();
  for (const residual_stage& s : m.residual_stages) {
    stages.push_back({{"rank", s.rank},
                      {"intermediate_rank", s.intermediate_rank},
                      {"weight_energy", s.weight_energy},
                      {"activation_energy", s.activation_energy}});
  }
  const auto& w = m.whitening;
  return {{"acts", static_cast<int>(m.acts)},
          {"rank", m.rank},
          {"singular_values", m.singular_values},
          {"weight_energies", m.weight_energies},
          {"activation_energies", m.activation_energies},
          {"weight_total", m.weight_total},
          {"activation_total", m.activation_total},
          {"residual_stages", stages},
          {"whitening_path", static_cast<int>(w.path)},
          {"damping", w.damping},
          {"relative_damping", w.relative_damping},
          {"condition", number(w.condition)},
          {"power", w.power},
          {"algorithm", static_cast<int>(m.svd.algorithm)},
          {"numerical_rank", m.svd.numerical_rank},
          {"seconds", m.seconds}};
}

factored_matrix from_json(const ordered_json& j, linear_module module) {
  factored_matrix m;
  m.module = std::move(module);
  m.acts = static_cast<ressvd::projection>(j.at("acts").get<int>());
  m.rank = j.at("rank");
  m.singular_values = j.at("singular_values").get<std::vector<double>>();
  m.weight_energies = j.at("weight_energies").get<std::vector<double>>();
  m.activation_energies = j.at("activation_energies").get<std::vector<double>>();
  m.weight_total = j.at("weight_total");
  m.activation_total = j.at("activation_total");
  for (const auto& s : j.at("residual_stages")) {
    m.residual_stages.push_back({.rank = s.at("rank"),
                                 .intermediate_rank = s.at("intermediate_rank"),
                                 .q = {},
                                 .weight_energy = s.at("weight_energy"),
                                 .activation_energy = s.at("activation_energy")});
  }
  m.whitening.path = static_cast<ressvd::whitening_path>(j.at("whitening_path").get<int>());
  m.whitening.damping = j.at("damping");
  m.whitening.relative_damping = j.at("relative_damping");
  m.whitening.condition = read_number(j.at("condition"));
  m.whitening.power = j.at("power");
  m.svd.algorithm = static_cast<ressvd::svd_algorithm>(j.at("algorithm").get<int>());
  m.svd.numerical_rank = j.at("numerical_rank");
  m.seconds = j.at("seconds");
  return m;
}

std::string stage_name(const factored_matrix& m, const residual_stage& s) {
  return m.module.prefix + ".residual." + std::to_string(s.rank);
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
  const auto keep = [&](const std::string& name, const std::vector<float>& values) {
    if (!values.empty()) list.push_back({name, {static_cast<std::int64_t>(values.size())}, values});
  };
  for (const factored_matrix& m : layer.matrices) {
    keep(m.module.prefix, m.q);
    for (const residual_stage& s : m.residual_stages)
      keep(stage_name(m, s), s.q);
    matrices.push_back(to_json(m));
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
    result.matrices.push_back(from_json(json.at("matrices").at(i), std::move(modules[i])));
  }
  return result;
}

factored_layer layer_store::load(const model_config& config, std::int64_t layer) const {
  factored_layer result = load_summary(config, layer);
  const checkpoint source = checkpoint::open_file(tensors(layer));
  for (factored_matrix& m : result.matrices) {
    m.q = read_matrix(source, m.module.prefix, m.basis_rows() * m.rank);
    for (residual_stage& s : m.residual_stages) {
      s.q = read_matrix(source, stage_name(m, s), m.basis_rows() * (s.rank - s.intermediate_rank));
    }
  }
  return result;
}

} // namespace ressvd_llm
