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
                  const layer_weights& weights, const refine_options& trained) {
  std::vector<scratch_matrix> list;
  for (const linear_module& module : linear_modules(config, layer)) {
    const linear& l = weights[module.place];
    if (!l.factored()) {
      if (trained.dense)
        list.push_back({module.weight_name(), {l.out(), l.in()}, l.dense.values()});
      continue;
    }
    if (l.pivoted()) {
      list.push_back({module.c_name(), {l.out() - l.rank(), l.rank()}, l.c.values()});
      list.push_back({module.z_name(), {l.rank(), l.in()}, l.z.values()});
      // Row numbers are far below what float holds exactly.
      list.push_back({module.order_name(), {l.out()}, {l.order.begin(), l.order.end()}});
      continue;
    }
    list.push_back({module.u_name(), {l.out(), l.rank()}, l.u.values()});
    list.push_back({module.v_name(), {l.rank(), l.in()}, l.v.values()});
  }
  if (trained.norms) {
    const auto scales = norm_scales(weights);
    const auto names = norm_scale_names(config, layer);
    for (std::size_t i = 0; i < scales.size(); ++i)
      list.push_back({names[i], {static_cast<std::int64_t>(scales[i]->size())}, *scales[i]});
  }
  write_scratch(file, list);
}

void load_factors(const std::filesystem::path& file, const model_config& config, std::int64_t layer,
                  layer_weights& weights) {
  const checkpoint source = checkpoint::open_file(file);
  const auto matrix = [&](const std::string& name) {
    const auto shape = source.describe(name).shape;
    return weight_matrix(shape[0], shape[1], read_f32(source, name, shape));
  };
  for (const linear_module& module : linear_modules(config, layer)) {
    linear& l = weights[module.place];
    if (source.contains(module.z_name())) {
      const auto order = read_f32(source, module.order_name(), {module.out});
      l = make_pivoted_linear(matrix(module.c_name()), matrix(module.z_name()),
                              {order.begin(), order.end()}, l.bias);
    } else if (source.contains(module.u_name())) {
      l = make_linear(matrix(module.u_name()), matrix(module.v_name()), l.bias);
    } else if (source.contains(module.weight_name())) {
      l = make_linear(matrix(module.weight_name()), l.bias);
    }
  }
  const auto scales = norm_scales(weights);
  const auto names = norm_scale_names(config, layer);
  for (std::size_t i = 0; i < scales.size(); ++i) {
    if (source.contains(names[i]))
      *scales[i] = read_f32(source, names[i], {static_cast<std::int64_t>(scales[i]->size())});
  }
}

void fail_damaged(const std::filesystem::path& file) {
  throw file_error(file, "is damaged; start again without --resume");
}

} // namespace ressvd_llm
