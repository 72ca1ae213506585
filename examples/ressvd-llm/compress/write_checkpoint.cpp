// SPDX-License-Identifier: Apache-2.0
#include "compress/write_checkpoint.hpp"

#include <algorithm>
#include <array>
#include <cstdio>
#include <set>
#include <utility>
#include <variant>

#include <nlohmann/json.hpp>

#include "io/checkpoint.hpp"
#include "io/config.hpp"
#include "io/error.hpp"
#include "io/gguf.hpp"
#include "io/gguf_model.hpp"
#include "io/gguf_tokenizer.hpp"
#include "io/mapped_file.hpp"
#include "model/attention.hpp"
#include "tokenizer/gguf_from_directory.hpp"
#include "tokenizer/json_from_gguf.hpp"

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

bool to_gguf(const compress_options& options) {
  return options.format == output_format::gguf;
}

// llama.cpp wants norms, biases and routers in single precision.
bool single_in_gguf(const model_config& config, const tensor_view& tensor) {
  return tensor.shape.size() < 2 ||
         gguf_name(config.family, tensor.name).ends_with(".ffn_gate_inp.weight");
}

// The type in which a tensor that is not copied as it is is stored.
dtype type_of(const model_config& config, const tensor_view& original,
              const compress_options& options) {
  if (to_gguf(options) && single_in_gguf(config, original)) return dtype::f32;
  const dtype type = options.type.value_or(original.type);
  if (!is_quantised(type)) return type;
  const bool whole_blocks = original.shape.back() % block_of(type) == 0;
  return options.type && whole_blocks ? type : dtype::f16;
}

// The matrix, or the factor of it whose rows are as long.
const tensor_view& stored_matrix(const checkpoint& source, const linear_module& module) {
  for (const std::string& name : {module.v_name(), module.z_name()}) {
    if (source.contains(name)) return source.at(name);
  }
  return source.at(module.weight_name());
}

bool trains_dense(const compress_options& options) {
  return refines(options) && options.refine.dense;
}

bool trains_norms(const compress_options& options) {
  return refines(options) && options.refine.norms;
}

// The head size where a GGUF file has the rows of the tensor interleaved. What a model directory
// holds beyond the model's layers may have any shape.
std::int64_t heads_of(const language_model& model, const std::string& name, std::int64_t rows) {
  const std::int64_t heads = interleaved_heads(model.config(), name);
  if (heads > 0 && rows % heads != 0) {
    throw file_error(model.source().path(), name,
                     std::to_string(rows) + " rows are no whole heads of " + std::to_string(heads));
  }
  return heads;
}

// A tensor in the output's name and order of rows.
void put(checkpoint_writer& writer, const language_model& model, const compress_options& options,
         const std::string& name, const std::vector<std::int64_t>& shape, std::vector<float> values,
         dtype type) {
  if (!to_gguf(options)) return writer.add(name, shape, values, type);
  const model_config& config = model.config();
  const std::int64_t rows = shape.empty() ? 1 : shape.front();
  interleave_rows(values, rows, heads_of(model, name, rows));
  if (const float added = added_in_gguf(config, name); added != 0) {
    for (float& value : values)
      value += added;
  }
  writer.add(gguf_name(config.family, name), shape, values, type);
}

// Bytes as they are, where the output can have them.
bool copied(checkpoint_writer& writer, const language_model& model, const compress_options& options,
            tensor_view tensor) {
  const model_config& config = model.config();
  const bool single = to_gguf(options) && single_in_gguf(config, tensor);
  if (options.type && !single && *options.type != tensor.type) return false;
  if (!to_gguf(options)) {
    if (is_quantised(tensor.type) || tensor.added != 0) return false;
    writer.add(tensor);
    return true;
  }
  if (single && tensor.type != dtype::f32) return false;
  if (tensor.added != added_in_gguf(config, tensor.name)) return false;
  const std::int64_t heads = heads_of(model, tensor.name, tensor.rows());
  std::vector<std::byte> rows;
  if (tensor.interleaved != heads && tensor.rows() > 0) {
    const auto row_bytes = static_cast<std::ptrdiff_t>(tensor.bytes()) / tensor.rows();
    rows.resize(tensor.bytes());
    for (std::int64_t row = 0; row < tensor.rows(); ++row)
      std::copy_n(tensor.row(row), row_bytes, rows.begin() + stored_row(row, heads) * row_bytes);
    tensor.data = rows.data();
  }
  tensor.interleaved = 0;
  tensor.added = 0;
  tensor.name = gguf_name(config.family, tensor.name);
  writer.add(tensor);
  return true;
}

// What a directory may hold beside the model's own tensors, such as the frequencies of the rotary
// embedding, has no place in a GGUF file.
bool belongs_to_gguf(const language_model& model, const std::string& name) {
  if (name == "lm_head.weight" && model.config().tied_embeddings)
    return embedding_name(model.source(), model.config()) == name;
  return is_gguf(model.source().path()) || gguf_name(model.config().family, name) != name;
}

// Phi-3 whose fused matrices are apart.
void describe_as_mistral(const model_config& config, nlohmann::ordered_json& json) {
  json["architectures"] = {"MistralForCausalLM"};
  json["model_type"] = "mistral";
  json["num_key_value_heads"] = config.kv_heads;
  json["sliding_window"] = nullptr;
  if (config.sliding_window) json["sliding_window"] = *config.sliding_window;
  json.erase("auto_map");
}

// A GGUF file has the matrices of a mixture's experts as one tensor a projection.
bool stacks_experts(const model_config& config, std::int64_t layer,
                    const compress_options& options) {
  return to_gguf(options) && config.is_mixture(layer);
}

// Tensors of the experts, which are not written one by one.
void leave_out_experts(const model_config& config, std::int64_t layer,
                       std::set<std::string, std::less<>>& names) {
  for (const linear_module& m : linear_modules(config, layer)) {
    if (m.place.expert == no_expert) continue;
    names.insert({m.weight_name(), m.u_name(), m.v_name(), m.c_name(), m.z_name(), m.order_name()});
  }
}

// All experts' matrices of one projection as their checkpoint has them, where they may be copied.
bool copied_experts(checkpoint_writer& writer, const checkpoint& source, const std::string& name,
                    const std::vector<linear_module>& modules, const compress_options& options) {
  const tensor_view& first = source.at(modules.front().weight_name());
  if (options.type && *options.type != first.type) return false;
  std::vector<std::byte> bytes;
  for (const linear_module& m : modules) {
    const tensor_view& tensor = source.at(m.weight_name());
    if (tensor.type != first.type) return false;
    bytes.insert(bytes.end(), tensor.data, tensor.data + tensor.bytes());
    source.release(m.weight_name());
  }
  tensor_view whole = first;
  whole.name = name;
  whole.shape.insert(whole.shape.begin(), std::ssize(modules));
  whole.data = bytes.data();
  writer.add(whole);
  return true;
}

void write_experts(checkpoint_writer& writer, const language_model& model, std::int64_t layer,
                   const layer_weights& weights, const compress_options& options) {
  const auto all = linear_modules(model.config(), layer);
  for (const projection kind : {projection::gate, projection::up, projection::down}) {
    std::vector<linear_module> modules;
    for (const linear_module& m : all) {
      if (m.place.expert != no_expert && m.place.kind == kind) modules.push_back(m);
    }
    const std::string name = stacked_gguf_name(layer, name_of(kind));
    const bool kept = !trains_dense(options) && std::ranges::none_of(modules, [&](const auto& m) {
      return weights[m.place].factored();
    });
    if (kept && copied_experts(writer, model.source(), name, modules, options)) continue;
    std::vector<float> values;
    for (const linear_module& m : modules) {
      const linear& l = weights[m.place];
      const std::vector<float> matrix = l.factored() ? product_of(l) : l.dense.values();
      values.insert(values.end(), matrix.begin(), matrix.end());
    }
    const linear_module& first = modules.front();
    tensor_view stored = stored_matrix(model.source(), first);
    stored.shape = {first.out, first.in};
    writer.add(name, {std::ssize(modules), first.out, first.in}, values,
               type_of(model.config(), stored, options));
  }
}

// llama.cpp's numbers for the type of most matrices.
std::uint32_t file_type(dtype type) {
  switch (type) {
    case dtype::f32:
      return 0;
    case dtype::q4_0:
      return 2;
    case dtype::q8_0:
      return 7;
    case dtype::bf16:
      return 32;
    default:
      return 1;
  }
}

// Pairs of describe_for_gguf() that do not begin with the architecture.
bool is_described(std::string_view key) {
  return key == "general.architecture" || key == "general.type" ||
         key == "tokenizer.ggml.bos_token_id" || key == "tokenizer.ggml.eos_token_id";
}

gguf_pairs pairs_of(const language_model& model, const compress_options& options,
                    const std::optional<compressed_info>& info) {
  gguf_pairs pairs;
  if (is_gguf(options.model)) {
    const mapped_file original(options.model);
    const gguf_content content = read_gguf(options.model, original.bytes());
    const std::string_view architecture = gguf_architecture(model.config());
    const std::string source = *content.metadata.text("general.architecture");
    const bool renamed = source != architecture; // Phi-3, whose fused matrices are apart
    if (renamed) pairs = describe_for_gguf(model.config());
    for (const gguf_value& value : content.metadata.values()) {
      const bool replaced =
          value.key == "general.alignment" || value.key == compressed_key ||
          (value.key == "general.file_type" && options.type) ||
          value.key == "general.quantization_version" ||
          (renamed && (value.key.starts_with(source + ".") || is_described(value.key)));
      if (!replaced) pairs.copy(value);
    }
  } else {
    pairs = describe_for_gguf(model.config());
    const auto found = gguf_tokenizer_of(options.model, model.config());
    if (const auto* const tokenizer = std::get_if<gguf_tokenizer>(&found)) {
      add_tokenizer(*tokenizer, pairs);
    } else {
      std::fprintf(stderr, "without a tokenizer: %s\n", std::get<std::string>(found).c_str());
      pairs.text("tokenizer.ggml.model", "none");
    }
  }
  if (options.type) {
    pairs.u32("general.file_type", file_type(*options.type));
  } else if (!is_gguf(options.model)) {
    const checkpoint& source = model.source();
    pairs.u32("general.file_type",
              file_type(source.at(embedding_name(source, model.config())).type));
  }
  pairs.u32("general.quantization_version", 2);
  if (info) pairs.text(compressed_key, to_json(*info).dump());
  return pairs;
}

} // namespace

namespace {

// What the original has under the given names is left out.
void write_others(checkpoint_writer& writer, const language_model& model,
                  const std::set<std::string, std::less<>>& replaced,
                  const compress_options& options) {
  const checkpoint& source = model.source();
  const std::string embedding = embedding_name(source, model.config());
  for (const std::string& name : source.names()) {
    if (replaced.contains(name)) continue;
    if (to_gguf(options) && !belongs_to_gguf(model, name)) continue;
    tensor_view tensor = source.at(name);
    if (name == embedding) tensor.name = canonical_embedding_name(model.config());
    if (!copied(writer, model, options, tensor)) {
      put(writer, model, options, tensor.name, tensor.shape, read_f32(source, name, tensor.shape),
          type_of(model.config(), tensor, options));
    }
    source.release(name);
  }
  const rope_scaling scaling = model.config().rope.scaling;
  if (to_gguf(options) && (scaling == rope_scaling::llama3 || scaling == rope_scaling::factors)) {
    const std::vector<float> factors = rope_factors(model.config());
    writer.add(rope_factors_name, {static_cast<std::int64_t>(factors.size())}, factors, dtype::f32);
  }
}

// A tokenizer that cannot be had is no reason to lose the model.
void add_tokenizer_of_gguf(checkpoint_writer& writer, const std::filesystem::path& file) {
  const mapped_file mapping(file);
  try {
    const auto description = read_gguf_tokenizer(read_gguf(file, mapping.bytes()).metadata);
    if (description) writer.add_file("tokenizer.json", tokenizer_json_of(file, *description));
  } catch (const file_error& error) {
    std::fprintf(stderr, "without a tokenizer: %s\n", error.what());
  }
}

} // namespace

void write_kept_tensors(checkpoint_writer& writer, const language_model& model,
                        const model_ranks& ranks, const compress_options& options) {
  std::set<std::string, std::less<>> replaced;
  for (std::int64_t layer = 0; layer < model.config().layers; ++layer) {
    const auto modules = linear_modules(model.config(), layer);
    if (stacks_experts(model.config(), layer, options))
      leave_out_experts(model.config(), layer, replaced);
    if (std::ranges::all_of(ranks[layer], &ressvd::rank_choice::dense)) continue;
    for (std::size_t i = 0; i < modules.size(); ++i) {
      const linear_module& m = modules[i];
      if (ranks[layer][i].dense) {
        if (trains_dense(options)) replaced.insert(m.weight_name());
        continue;
      }
      // Of a compressed model the factors are those that are there.
      replaced.insert({m.weight_name(), m.u_name(), m.v_name(), m.c_name(), m.z_name(),
                       m.order_name(), m.u_bias_name(), m.c_bias_name()});
      if (options.format == output_format::factored) replaced.insert(m.bias_name());
    }
    if (trains_norms(options)) {
      for (std::string& name : norm_scale_names(model.config(), layer))
        replaced.insert(std::move(name));
    }
  }
  write_others(writer, model, replaced, options);
  for (std::int64_t layer = 0; layer < model.config().layers; ++layer) {
    if (stacks_experts(model.config(), layer, options) &&
        std::ranges::all_of(ranks[layer], &ressvd::rank_choice::dense))
      write_experts(writer, model, layer, model.layer(layer), options);
  }
}

void write_layer(checkpoint_writer& writer, const language_model& model, std::int64_t layer,
                 const layer_weights& weights, const compress_options& options) {
  const checkpoint& source = model.source();
  if (std::ranges::none_of(weights.linears, &linear::factored)) return;
  if (trains_norms(options)) {
    const auto scales = norm_scales(weights);
    const auto names = norm_scale_names(model.config(), layer);
    for (std::size_t i = 0; i < scales.size(); ++i) {
      std::vector<float> stored = *scales[i];
      if (model.config().norms_around_zero) {
        for (float& scale : stored)
          scale -= 1.0f;
      }
      put(writer, model, options, names[i], {static_cast<std::int64_t>(stored.size())}, stored,
          type_of(model.config(), source.at(names[i]), options));
    }
  }
  const bool stacked = stacks_experts(model.config(), layer, options);
  if (stacked) write_experts(writer, model, layer, weights, options);
  for (const linear_module& module : linear_modules(model.config(), layer)) {
    const linear& l = weights[module.place];
    if (stacked && module.place.expert != no_expert) continue;
    if (!l.factored() && (l.empty() || !trains_dense(options))) continue;
    const dtype type = type_of(model.config(), stored_matrix(source, module), options);
    if (!l.factored()) {
      put(writer, model, options, module.weight_name(), {l.out(), l.in()}, l.dense.values(), type);
      continue;
    }
    if (options.format != output_format::factored) {
      put(writer, model, options, module.weight_name(), {l.out(), l.in()}, product_of(l), type);
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
  if (to_gguf(options)) return writer.describe(pairs_of(model, options, info));
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
  if (config.family == model_family::phi3) describe_as_mistral(config, json);
  json["ressvd"] = to_json(info);
  writer.add_file("config.json", json.dump(2) + "\n");
  for (const char* name : {"tokenizer.model", "tokenizer.json", "tokenizer_config.json",
                           "special_tokens_map.json", "added_tokens.json", "vocab.json",
                           "merges.txt", "generation_config.json", "chat_template.jinja"}) {
    const auto file = options.model / name;
    if (std::filesystem::is_regular_file(file)) writer.copy_file(file);
  }
  if (is_gguf(options.model)) add_tokenizer_of_gguf(writer, options.model);
}

void write_converted(checkpoint_writer& writer, const language_model& model,
                     const compress_options& options) {
  const checkpoint& source = model.source();
  std::set<std::string, std::less<>> replaced;
  for (std::int64_t layer = 0; layer < model.config().layers; ++layer) {
    const layer_weights weights = model.layer(layer);
    if (stacks_experts(model.config(), layer, options)) {
      leave_out_experts(model.config(), layer, replaced);
      write_experts(writer, model, layer, weights, options);
    }
    for (const linear_module& m : linear_modules(model.config(), layer)) {
      const linear& l = weights[m.place];
      if (!l.factored() || replaced.contains(m.weight_name())) continue;
      replaced.insert({m.u_name(), m.v_name(), m.u_bias_name(), m.c_name(), m.z_name(),
                       m.order_name(), m.c_bias_name()});
      tensor_view stored = source.at(l.pivoted() ? m.z_name() : m.v_name());
      stored.shape = {l.out(), l.in()};
      put(writer, model, options, m.weight_name(), stored.shape, product_of(l),
          type_of(model.config(), stored, options));
      if (!l.bias.empty())
        put(writer, model, options, m.bias_name(), {l.out()}, l.bias, dtype::f32);
    }
  }
  write_others(writer, model, replaced, options);
  std::optional<compressed_info> info = model.config().compressed;
  if (info) info->format = "dense";
  writer.describe(pairs_of(model, options, info));
}

bool has_gguf_tokenizer(const std::filesystem::path& file) {
  const mapped_file mapping(file);
  return read_gguf(file, mapping.bytes()).metadata.find("tokenizer.ggml.tokens") != nullptr;
}

} // namespace ressvd_llm
