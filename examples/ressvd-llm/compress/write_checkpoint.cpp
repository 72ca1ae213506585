// SPDX-License-Identifier: Apache-2.0
#include "compress/write_checkpoint.hpp"

#include <algorithm>
#include <array>
#include <set>
#include <utility>

#include <nlohmann/json.hpp>

#include "io/checkpoint.hpp"
#include "io/config.hpp"

namespace ressvd_llm {
namespace {

// left·right, rows × right.cols().
std::vector<float> product_of(const weight_matrix& left, const weight_matrix& right) {
  const auto v = right.values();
  std::vector<float> transposed(v.size());
  for (std::int64_t i = 0; i < right.rows(); ++i) {
    for (std::int64_t j = 0; j < right.cols(); ++j) {
      transposed[static_cast<std::size_t>(j * right.rows() + i)] =
          v[static_cast<std::size_t>(i * right.cols() + j)];
    }
  }
  std::vector<float> out(static_cast<std::size_t>(left.rows() * right.cols()), 0.0f);
  multiply_add(left.values().data(), left.rows(),
               weight_matrix(right.cols(), right.rows(), std::move(transposed)), out.data());
  return out;
}

// The matrix that a compressed one stands for, out × in.
std::vector<float> product_of(const linear& l) {
  if (!l.pivoted()) return product_of(l.u, l.v);
  std::vector<float> rows = l.z.values();
  const std::vector<float> rest = product_of(l.c, l.z);
  rows.insert(rows.end(), rest.begin(), rest.end());
  std::vector<float> product(rows.size());
  for (std::size_t i = 0; i < l.order.size(); ++i) {
    std::copy_n(rows.begin() + static_cast<std::ptrdiff_t>(i) * l.in(), l.in(),
                product.begin() + static_cast<std::ptrdiff_t>(l.order[i]) * l.in());
  }
  return product;
}

dtype type_of(const language_model& model, const linear_module& module,
              const compress_options& options) {
  return options.type.value_or(model.source().at(module.weight_name()).type);
}

} // namespace

void write_kept_tensors(checkpoint_writer& writer, const language_model& model,
                        const model_ranks& ranks, const compress_options& options) {
  std::set<std::string, std::less<>> replaced;
  for (std::int64_t layer = 0; layer < model.config().layers; ++layer) {
    const auto modules = linear_modules(model.config(), layer);
    for (std::size_t i = 0; i < modules.size(); ++i) {
      if (ranks[layer][i].dense) continue;
      replaced.insert(modules[i].weight_name());
      if (options.format == output_format::factored) replaced.insert(modules[i].bias_name());
    }
  }
  const checkpoint& source = model.source();
  const std::string embedding = embedding_name(source, model.config());
  for (const std::string& name : source.names()) {
    if (replaced.contains(name)) continue;
    tensor_view tensor = source.at(name);
    if (name == embedding) tensor.name = canonical_embedding_name(model.config());
    if (options.type && *options.type != tensor.type) {
      writer.add(tensor.name, tensor.shape, read_f32(source, name, tensor.shape), *options.type);
    } else {
      writer.add(tensor);
    }
    source.release(name);
  }
}

void write_layer(checkpoint_writer& writer, const language_model& model, std::int64_t layer,
                 const layer_weights& weights, const compress_options& options) {
  for (const linear_module& module : linear_modules(model.config(), layer)) {
    const linear& l = weights[module.kind];
    if (!l.factored()) continue;
    const dtype type = type_of(model, module, options);
    if (options.format == output_format::dense) {
      writer.add(module.weight_name(), {l.out(), l.in()}, product_of(l), type);
      continue;
    }
    if (l.pivoted()) {
      writer.add(module.c_name(), {l.out() - l.rank(), l.rank()}, l.c.values(), type);
      writer.add(module.z_name(), {l.rank(), l.in()}, l.z.values(), type);
      writer.add(module.order_name(), {l.out()}, l.order);
      if (!l.bias.empty()) writer.add(module.c_bias_name(), {l.out()}, l.bias, type);
      continue;
    }
    writer.add(module.u_name(), {l.out(), l.rank()}, l.u.values(), type);
    writer.add(module.v_name(), {l.rank(), l.in()}, l.v.values(), type);
    if (!l.bias.empty()) writer.add(module.u_bias_name(), {l.out()}, l.bias, type);
  }
}

void write_description(checkpoint_writer& writer, const language_model& model,
                       const model_ranks& ranks, const compress_options& options, double achieved) {
  const model_config& config = model.config();
  compressed_info info;
  info.method = options.method;
  info.format = options.format == output_format::factored ? "factored" : "dense";
  info.form = name_of(options.form);
  info.ratio = achieved;
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    const auto modules = linear_modules(config, layer);
    for (std::size_t i = 0; i < modules.size(); ++i) {
      const ressvd::rank_choice& r = ranks[layer][i];
      if (!r.dense) info.ranks[modules[i].prefix] = r.rank;
    }
  }
  auto json = nlohmann::ordered_json::parse(config.text);
  if (options.type) {
    const std::array<std::pair<dtype, const char*>, 3> names{
        {{dtype::f32, "float32"}, {dtype::f16, "float16"}, {dtype::bf16, "bfloat16"}}};
    for (const auto& [type, name] : names) {
      if (type != *options.type) continue;
      for (const char* key : {"torch_dtype", "dtype"}) {
        if (json.contains(key)) json[key] = name;
      }
    }
  }
  json["ressvd"] = to_json(info);
  writer.add_file("config.json", json.dump(2) + "\n");
  for (const char* name : {"tokenizer.model", "tokenizer.json", "tokenizer_config.json",
                           "special_tokens_map.json", "added_tokens.json", "vocab.json",
                           "merges.txt", "generation_config.json", "chat_template.jinja"}) {
    const auto file = options.model / name;
    if (std::filesystem::is_regular_file(file)) writer.copy_file(file);
  }
}

} // namespace ressvd_llm
