// SPDX-License-Identifier: Apache-2.0
#include "compress/resume.hpp"

#include <vector>

#include <nlohmann/json.hpp>

#include "compress/scratch_file.hpp"
#include "io/checkpoint.hpp"
#include "io/error.hpp"

namespace ressvd_llm {

std::string run_state::to_text() const {
  return nlohmann::ordered_json{{"run", options}, {"next_layer", next_layer}}.dump();
}

run_state run_state::from_text(std::string_view text) {
  const auto json = nlohmann::json::parse(text);
  return {.options = json.at("run"), .next_layer = json.at("next_layer")};
}

void save_factors(const std::filesystem::path& file, const model_config& config, std::int64_t layer,
                  const layer_weights& weights) {
  std::vector<scratch_matrix> list;
  for (const linear_module& module : linear_modules(config, layer)) {
    const linear& l = weights[module.kind];
    if (!l.factored()) continue;
    list.push_back({module.u_name(), {l.out(), l.rank()}, l.u.values()});
    list.push_back({module.v_name(), {l.rank(), l.in()}, l.v.values()});
  }
  write_scratch(file, list);
}

void load_factors(const std::filesystem::path& file, const model_config& config, std::int64_t layer,
                  layer_weights& weights) {
  const checkpoint source = checkpoint::open_file(file);
  for (const linear_module& module : linear_modules(config, layer)) {
    if (!source.contains(module.u_name())) continue;
    linear& l = weights[module.kind];
    const auto u = source.describe(module.u_name()).shape;
    const auto v = source.describe(module.v_name()).shape;
    l = make_linear(weight_matrix(u[0], u[1], read_f32(source, module.u_name(), u)),
                    weight_matrix(v[0], v[1], read_f32(source, module.v_name(), v)), l.bias);
  }
}

void fail_damaged(const std::filesystem::path& file) {
  throw file_error(file, "is damaged; start again without --resume");
}

} // namespace ressvd_llm
