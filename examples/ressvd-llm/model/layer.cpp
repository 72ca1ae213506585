// SPDX-License-Identifier: Apache-2.0
#include "model/layer.hpp"

#include <algorithm>
#include <cmath>
#include <memory>
#include <set>
#include <utility>

#include "io/error.hpp"

namespace ressvd_llm {

namespace {

constexpr const char* head_name = "lm_head.weight";

bool is_opt(const model_config& config) {
  return config.family == model_family::opt;
}

std::string layer_prefix(const model_config& config, std::int64_t layer) {
  return (is_opt(config) ? "model.decoder.layers." : "model.layers.") + std::to_string(layer) + ".";
}

std::string mixture_prefix(const model_config& config, std::int64_t layer) {
  return layer_prefix(config, layer) +
         (config.family == model_family::mixtral ? "block_sparse_moe." : "mlp.");
}

std::string router_name(const model_config& config, std::int64_t layer) {
  return mixture_prefix(config, layer) + "gate.weight";
}

// "a.q_proj" → "a.q_u_proj", "a.fc1" → "a.fc1_u".
std::string factor_prefix(const std::string& prefix, std::string_view factor) {
  constexpr std::string_view suffix = "_proj";
  if (prefix.ends_with(suffix))
    return prefix.substr(0, prefix.size() - suffix.size()) + "_" + std::string(factor) +
           std::string(suffix);
  return prefix + "_" + std::string(factor);
}

void require_finite(const checkpoint& source, const tensor_view& tensor) {
  if (tensor.elements() == 0) return;
  const std::int64_t width = tensor.elements() / tensor.rows();
  const std::int64_t block = std::max<std::int64_t>(1, (1 << 16) / width);
  const auto values = std::make_unique_for_overwrite<float[]>(
      static_cast<std::size_t>(std::min(block, tensor.rows()) * width));
  for (std::int64_t first = 0; first < tensor.rows(); first += block) {
    const std::int64_t rows = std::min(block, tensor.rows() - first);
    const auto count = static_cast<std::size_t>(rows * width);
    decode_rows(tensor, first, rows, std::span<float>(values.get(), count));
    for (std::size_t i = 0; i < count; ++i)
      if (!std::isfinite(values[i]))
        throw file_error(source.file_of(tensor.name), tensor.name,
                         "element " + std::to_string(first * width + static_cast<std::int64_t>(i)) +
                             " is not finite");
  }
}

weight_matrix load_matrix(const checkpoint& source, const std::string& name, std::int64_t rows,
                          std::int64_t cols, weight_storage storage) {
  if (storage == weight_storage::float32) return {rows, cols, read_f32(source, name, {rows, cols})};
  require_shape(source, name, {rows, cols});
  const tensor_view& tensor = source.at(name);
  require_finite(source, tensor);
  return weight_matrix(tensor);
}

linear load_linear(const checkpoint& source, const linear_module& module, weight_storage storage) {
  const std::optional<std::int64_t> rank = rank_of(source, module);
  const bool pivoted = is_pivoted(source, module);
  const std::string bias_name = pivoted ? module.c_bias_name()
                                : rank  ? module.u_bias_name()
                                        : module.bias_name();
  std::vector<float> bias;
  if (module.has_bias)
    bias = read_f32(source, bias_name, {module.out});
  else if (source.contains(bias_name))
    throw file_error(source.file_of(bias_name), bias_name,
                     "the config says that this layer has no bias");
  if (pivoted) {
    const std::string name = module.order_name();
    std::vector<std::int32_t> order = read_i32(source, name, {module.out});
    if (!is_permutation(order))
      throw file_error(source.file_of(name), name, "is no permutation of the rows");
    return make_pivoted_linear(
        load_matrix(source, module.c_name(), module.out - *rank, *rank, storage),
        load_matrix(source, module.z_name(), *rank, module.in, storage), std::move(order),
        std::move(bias));
  }
  if (!rank)
    return make_linear(load_matrix(source, module.weight_name(), module.out, module.in, storage),
                       std::move(bias));
  return make_linear(load_matrix(source, module.u_name(), module.out, *rank, storage),
                     load_matrix(source, module.v_name(), *rank, module.in, storage),
                     std::move(bias));
}

std::vector<float> load_scale(const checkpoint& source, const model_config& config,
                              const std::string& name, std::int64_t width) {
  std::vector<float> scale = read_f32(source, name, {width});
  if (config.norms_around_zero) {
    for (float& value : scale)
      value += 1.0f;
  }
  return scale;
}

norm_weights load_norm(const checkpoint& source, const model_config& config,
                       const std::string& prefix) {
  norm_weights result;
  result.scale = load_scale(source, config, prefix + ".weight", config.hidden_size);
  if (is_opt(config)) result.shift = read_f32(source, prefix + ".bias", {config.hidden_size});
  return result;
}

} // namespace

std::string_view name_of(projection kind) {
  constexpr std::array<std::string_view, projection_count> names = {"q",    "k",  "v",   "o",
                                                                    "gate", "up", "down"};
  return names[static_cast<std::size_t>(kind)];
}

std::string_view name_of(input_group group) {
  constexpr std::array<std::string_view, input_group_count> names = {
      "attention", "attention_output", "mlp", "mlp_output"};
  return names[static_cast<std::size_t>(group)];
}

std::string name_of(const matrix_place& place) {
  std::string name(name_of(place.kind));
  return place.expert == no_expert ? name : name + " of expert " + std::to_string(place.expert);
}

std::string name_of(const layer_input& input) {
  std::string name(name_of(input.group));
  return input.expert == no_expert ? name : name + " of expert " + std::to_string(input.expert);
}

std::string linear_module::weight_name() const {
  return prefix + ".weight";
}
std::string linear_module::u_name() const {
  return factor_prefix(prefix, "u") + ".weight";
}
std::string linear_module::v_name() const {
  return factor_prefix(prefix, "v") + ".weight";
}
std::string linear_module::c_name() const {
  return factor_prefix(prefix, "c") + ".weight";
}
std::string linear_module::z_name() const {
  return factor_prefix(prefix, "z") + ".weight";
}
std::string linear_module::order_name() const {
  return factor_prefix(prefix, "c") + ".rows";
}
std::string linear_module::bias_name() const {
  return prefix + ".bias";
}
std::string linear_module::u_bias_name() const {
  return factor_prefix(prefix, "u") + ".bias";
}
std::string linear_module::c_bias_name() const {
  return factor_prefix(prefix, "c") + ".bias";
}

namespace {

void add_experts(const model_config& config, std::int64_t layer,
                 std::vector<linear_module>& modules) {
  using enum input_group;
  const std::int64_t hidden = config.hidden_size;
  const std::int64_t inner = config.expert_intermediate_size;
  const bool mixtral = config.family == model_family::mixtral;
  for (std::int64_t e = 0; e < config.experts; ++e) {
    const std::string start = mixture_prefix(config, layer) + "experts." + std::to_string(e) + ".";
    modules.push_back(
        {start + (mixtral ? "w1" : "gate_proj"), {projection::gate, e}, {mlp, e}, inner, hidden});
    modules.push_back(
        {start + (mixtral ? "w3" : "up_proj"), {projection::up, e}, {mlp, e}, inner, hidden});
    modules.push_back({start + (mixtral ? "w2" : "down_proj"),
                       {projection::down, e},
                       {mlp_output, e},
                       hidden,
                       inner});
  }
}

} // namespace

std::vector<linear_module> linear_modules(const model_config& config, std::int64_t layer) {
  const std::string start = layer_prefix(config, layer);
  const std::int64_t hidden = config.hidden_size;
  const std::int64_t inner = config.intermediate_size;
  const std::int64_t q_width = config.heads * config.head_dim;
  const std::int64_t kv_width = config.kv_heads * config.head_dim;
  using enum input_group;
  std::vector<linear_module> result = {
      {start + "self_attn.q_proj", projection::q, attention, q_width, hidden, config.qkv_bias},
      {start + "self_attn.k_proj", projection::k, attention, kv_width, hidden, config.qkv_bias},
      {start + "self_attn.v_proj", projection::v, attention, kv_width, hidden, config.qkv_bias},
      {start + (is_opt(config) ? "self_attn.out_proj" : "self_attn.o_proj"), projection::o,
       attention_output, hidden, q_width, config.o_bias}};
  if (config.is_mixture(layer)) {
    add_experts(config, layer, result);
  } else if (is_opt(config)) {
    result.push_back({start + "fc1", projection::up, mlp, inner, hidden, config.mlp_bias});
    result.push_back({start + "fc2", projection::down, mlp_output, hidden, inner, config.mlp_bias});
  } else {
    result.push_back(
        {start + "mlp.gate_proj", projection::gate, mlp, inner, hidden, config.mlp_bias});
    result.push_back({start + "mlp.up_proj", projection::up, mlp, inner, hidden, config.mlp_bias});
    result.push_back(
        {start + "mlp.down_proj", projection::down, mlp_output, hidden, inner, config.mlp_bias});
  }
  return result;
}

bool is_pivoted(const checkpoint& source, const linear_module& module) {
  return source.contains(module.c_name()) || source.contains(module.z_name()) ||
         source.contains(module.order_name());
}

std::optional<std::int64_t> rank_of(const checkpoint& source, const linear_module& module) {
  const bool pivoted = is_pivoted(source, module);
  const bool pair = source.contains(module.u_name()) || source.contains(module.v_name());
  if (!pivoted && !pair) {
    require_shape(source, module.weight_name(), {module.out, module.in});
    return std::nullopt;
  }
  if (source.contains(module.weight_name()))
    throw file_error(source.file_of(module.weight_name()), module.weight_name(),
                     "stands beside the factors of the same matrix");
  if (pivoted && pair) {
    const std::string name = source.contains(module.u_name()) ? module.u_name() : module.v_name();
    throw file_error(source.file_of(name), name,
                     "stands beside the pivoted form of the same matrix");
  }
  if (pivoted) {
    const tensor_view& z = source.at(module.z_name());
    const std::int64_t rank = z.shape.size() == 2 ? z.shape[0] : 0;
    if (rank < 1 || rank >= std::min(module.out, module.in))
      throw file_error(source.file_of(z.name), z.name,
                       "shape " + to_string(z.shape) + " is not that of pivot rows of a " +
                           std::to_string(module.out) + " x " + std::to_string(module.in) +
                           " matrix");
    require_shape(source, module.z_name(), {rank, module.in});
    require_shape(source, module.c_name(), {module.out - rank, rank});
    require_i32_shape(source, module.order_name(), {module.out});
    return rank;
  }
  const tensor_view& u = source.at(module.u_name());
  const std::int64_t rank = u.shape.size() == 2 ? u.shape[1] : 0;
  if (rank < 1)
    throw file_error(source.file_of(u.name), u.name,
                     "shape " + to_string(u.shape) + " is not that of a left factor");
  require_shape(source, module.u_name(), {module.out, rank});
  require_shape(source, module.v_name(), {rank, module.in});
  return rank;
}

std::int64_t largest_layer(const model_config& config) {
  std::int64_t largest = 0;
  std::int64_t most = 0;
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    std::int64_t parameters = 0;
    for (const linear_module& module : linear_modules(config, layer))
      parameters += module.out * module.in;
    if (parameters > most) {
      most = parameters;
      largest = layer;
    }
  }
  return largest;
}

std::vector<std::string> parameter_names(const checkpoint& source, const model_config& config) {
  std::set<std::string> orders;
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    for (const linear_module& module : linear_modules(config, layer)) {
      if (source.contains(module.order_name())) orders.insert(module.order_name());
    }
  }
  std::vector<std::string> names = source.names();
  std::erase_if(names, [&](const std::string& name) { return orders.contains(name); });
  return names;
}

std::string canonical_embedding_name(const model_config& config) {
  return is_opt(config) ? "model.decoder.embed_tokens.weight" : "model.embed_tokens.weight";
}

std::string embedding_name(const checkpoint& source, const model_config& config) {
  std::string name = canonical_embedding_name(config);
  const bool head_alone =
      config.tied_embeddings && !source.contains(name) && source.contains(head_name);
  return head_alone ? head_name : name;
}

void require_matrices(const checkpoint& source, const model_config& config) {
  require_shape(source, embedding_name(source, config), {config.vocab, config.hidden_size});
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    for (const linear_module& module : linear_modules(config, layer))
      rank_of(source, module);
    if (config.is_mixture(layer))
      require_shape(source, router_name(config, layer), {config.experts, config.hidden_size});
  }
}

namespace {

template <class Weights>
auto scales_of(Weights& weights) {
  std::vector<decltype(&weights.q_norm)> scales{&weights.attention_norm.scale,
                                                &weights.mlp_norm.scale};
  if (!weights.q_norm.empty()) scales.push_back(&weights.q_norm);
  if (!weights.k_norm.empty()) scales.push_back(&weights.k_norm);
  return scales;
}

struct norm_names {
  std::string attention;
  std::string mlp;
  std::string q;
  std::string k;
  std::string attention_post = {};
  std::string mlp_post = {};
};

norm_names names_of_norms(const model_config& config, std::int64_t layer) {
  const std::string start = layer_prefix(config, layer);
  const bool opt = is_opt(config);
  norm_names names{.attention = start + (opt ? "self_attn_layer_norm" : "input_layernorm"),
                   .mlp = start + (opt ? "final_layer_norm" : "post_attention_layernorm"),
                   .q = start + "self_attn.q_norm",
                   .k = start + "self_attn.k_norm"};
  if (config.post_norms) {
    names.attention_post = std::exchange(names.mlp, start + "pre_feedforward_layernorm");
    names.mlp_post = start + "post_feedforward_layernorm";
  }
  return names;
}

} // namespace

std::vector<matrix_place> places_of(const layer_weights& weights) {
  std::vector<matrix_place> places;
  const auto add = [&](const matrix_place& place) {
    if (!weights[place].empty()) places.push_back(place);
  };
  for (const projection kind : {projection::q, projection::k, projection::v, projection::o})
    add(kind);
  for (std::int64_t e = weights.experts() > 0 ? 0 : no_expert; e < weights.experts(); ++e) {
    for (const projection kind : {projection::gate, projection::up, projection::down})
      add({kind, e});
  }
  return places;
}

std::vector<std::vector<float>*> norm_scales(layer_weights& weights) {
  return scales_of(weights);
}

std::vector<const std::vector<float>*> norm_scales(const layer_weights& weights) {
  return scales_of(weights);
}

std::vector<std::string> norm_scale_names(const model_config& config, std::int64_t layer) {
  const norm_names norms = names_of_norms(config, layer);
  std::vector<std::string> names{norms.attention + ".weight", norms.mlp + ".weight"};
  if (config.qk_norm) {
    names.push_back(norms.q + ".weight");
    names.push_back(norms.k + ".weight");
  }
  return names;
}

layer_weights load_layer(const checkpoint& source, const model_config& config, std::int64_t layer,
                         weight_storage storage) {
  layer_weights result;
  result.index = layer;
  const auto modules = linear_modules(config, layer);
  result.linears.resize(std::max(projection_count, modules.back().place.index() + 1));
  for (const linear_module& module : modules)
    result[module.place] = load_linear(source, module, storage);
  if (config.is_mixture(layer)) {
    result.router = load_matrix(source, router_name(config, layer), config.experts,
                                config.hidden_size, weight_storage::float32);
  }
  const norm_names norms = names_of_norms(config, layer);
  result.attention_norm = load_norm(source, config, norms.attention);
  result.mlp_norm = load_norm(source, config, norms.mlp);
  if (config.post_norms) {
    result.attention_post_norm = load_norm(source, config, norms.attention_post);
    result.mlp_post_norm = load_norm(source, config, norms.mlp_post);
  }
  if (config.qk_norm) {
    result.q_norm = load_scale(source, config, norms.q + ".weight", config.head_dim);
    result.k_norm = load_scale(source, config, norms.k + ".weight", config.head_dim);
  }
  result.full_attention =
      !config.full_attention.empty() && config.full_attention[static_cast<std::size_t>(layer)];
  return result;
}

outer_weights load_outer(const checkpoint& source, const model_config& config,
                         weight_storage storage) {
  const std::string start = is_opt(config) ? "model.decoder." : "model.";
  outer_weights result;
  result.embedding = load_matrix(source, embedding_name(source, config), config.vocab,
                                 config.hidden_size, storage);
  if (is_opt(config))
    result.positions = load_matrix(source, start + "embed_positions.weight",
                                   config.max_positions + 2, config.hidden_size, storage);
  result.final_norm =
      load_norm(source, config, start + (is_opt(config) ? "final_layer_norm" : "norm"));
  result.head = config.tied_embeddings
                    ? result.embedding
                    : load_matrix(source, head_name, config.vocab, config.hidden_size, storage);
  return result;
}

} // namespace ressvd_llm
