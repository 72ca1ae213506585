// SPDX-License-Identifier: Apache-2.0
#include "commands/inspect.hpp"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "io/checkpoint.hpp"
#include "io/config.hpp"
#include "io/error.hpp"
#include "io/output_file.hpp"
#include "model/layer.hpp"

namespace ressvd_llm {
namespace {

struct matrix_summary {
  std::string name;  // "q_proj", "experts.3.up_proj"
  std::string group; // the same without the expert's number
  std::int64_t out = 0;
  std::int64_t in = 0;
  std::optional<std::int64_t> rank; // of a factored matrix
  bool pivoted = false;

  std::string form() const { return !rank ? "dense" : pivoted ? "pivoted" : "pair"; }
  std::int64_t dense_parameters() const { return out * in; }
  std::int64_t parameters() const {
    if (!rank) return dense_parameters();
    return *rank * (out + in - (pivoted ? *rank : 0));
  }
};

struct layer_summary {
  std::vector<matrix_summary> matrices;
  std::int64_t parameters = 0; // of everything in the layer
};

struct model_summary {
  std::vector<layer_summary> layers;
  std::set<std::string> types;
  std::int64_t parameters = 0;
  std::int64_t matrix_parameters = 0;
  std::int64_t dense_matrix_parameters = 0;
  std::uint64_t file_bytes = 0;

  double removed_share() const {
    return 1 -
           static_cast<double>(matrix_parameters) / static_cast<double>(dense_matrix_parameters);
  }
};

matrix_summary summarise(const checkpoint& source, const model_config& config,
                         const linear_module& module) {
  const std::string last = module.prefix.substr(module.prefix.rfind('.') + 1);
  matrix_summary matrix{
      last, last, module.out, module.in, rank_of(source, module), is_pivoted(source, module)};
  if (module.place.expert != no_expert) {
    matrix.name = "experts." + std::to_string(module.place.expert) + "." + last;
    matrix.group = "experts." + last;
  }
  if (config.compressed && config.compressed->format == "factored") {
    const auto& ranks = config.compressed->ranks;
    const auto stated = ranks.find(module.prefix);
    if ((stated != ranks.end()) != matrix.rank.has_value() ||
        (matrix.rank && stated->second != *matrix.rank)) {
      throw file_error(config.file, module.prefix,
                       "its rank in the config is not that of the checkpoint");
    }
    if (matrix.rank && matrix.form() != config.compressed->form) {
      throw file_error(config.file, module.prefix,
                       "its form in the config is not that of the checkpoint");
    }
  }
  return matrix;
}

model_summary summarise(const checkpoint& source, const model_config& config) {
  model_summary model;
  model.file_bytes = source.file_bytes();
  for (std::int64_t index = 0; index < config.layers; ++index) {
    layer_summary layer;
    for (const linear_module& module : linear_modules(config, index)) {
      layer.matrices.push_back(summarise(source, config, module));
      model.matrix_parameters += layer.matrices.back().parameters();
      model.dense_matrix_parameters += layer.matrices.back().dense_parameters();
    }
    model.layers.push_back(std::move(layer));
  }
  std::map<std::string, std::int64_t> parameters_of_layer; // by "model.layers.3."
  for (const std::string& name : parameter_names(source, config)) {
    const checkpoint::description tensor = source.describe(name);
    model.types.insert(tensor.type);
    model.parameters += tensor.elements;
    const std::size_t number = name.find("layers.");
    if (number == std::string::npos) continue;
    const std::size_t end = name.find('.', number + std::string("layers.").size());
    parameters_of_layer[name.substr(0, end)] += tensor.elements;
  }
  for (std::int64_t index = 0; index < config.layers; ++index) {
    const std::string prefix = linear_modules(config, index).front().prefix;
    model.layers[static_cast<std::size_t>(index)].parameters =
        parameters_of_layer[prefix.substr(0, prefix.find(".self_attn"))];
  }
  return model;
}

nlohmann::ordered_json to_json(const model_summary& model, const model_config& config) {
  nlohmann::ordered_json json;
  json["architecture"] = config.architecture;
  json["element_types"] = model.types;
  json["hidden_size"] = config.hidden_size;
  json["vocabulary"] = config.vocab;
  if (config.experts > 0) {
    json["experts"] = config.experts;
    json["experts_per_token"] = config.experts_per_token;
  }
  json["parameters"] = model.parameters;
  json["matrix_parameters"] = model.matrix_parameters;
  json["dense_matrix_parameters"] = model.dense_matrix_parameters;
  json["removed_share"] = model.removed_share();
  json["file_bytes"] = model.file_bytes;
  if (config.compressed) {
    json["method"] = config.compressed->method;
    json["ratio"] = config.compressed->ratio;
    json["format"] = config.compressed->format;
    if (config.compressed->format == "factored") json["form"] = config.compressed->form;
  }
  json["layers"] = nlohmann::ordered_json::array();
  for (const layer_summary& layer : model.layers) {
    nlohmann::ordered_json matrices = nlohmann::ordered_json::array();
    for (const matrix_summary& matrix : layer.matrices) {
      nlohmann::ordered_json item{{"name", matrix.name}, {"out", matrix.out}, {"in", matrix.in}};
      item["form"] = matrix.form();
      item["rank"] = matrix.rank ? nlohmann::ordered_json(*matrix.rank) : nullptr;
      item["parameters"] = matrix.parameters();
      matrices.push_back(std::move(item));
    }
    json["layers"].push_back({{"parameters", layer.parameters}, {"matrices", std::move(matrices)}});
  }
  return json;
}

// A column of the table of ranks: a matrix, or those of all experts.
struct column {
  std::string name;
  std::string shape;
};

std::vector<column> columns_of(const model_summary& model) {
  std::vector<column> columns;
  for (const layer_summary& layer : model.layers) {
    for (const matrix_summary& matrix : layer.matrices) {
      if (std::ranges::find(columns, matrix.group, &column::name) != columns.end()) continue;
      columns.push_back(
          {matrix.group, std::to_string(matrix.out) + " x " + std::to_string(matrix.in)});
    }
  }
  return columns;
}

// "dense", "12", "8-12", "8-dense"; "-" where the layer has no such matrix.
std::string ranks_in(const layer_summary& layer, const std::string& group) {
  constexpr std::int64_t dense = std::numeric_limits<std::int64_t>::max();
  std::set<std::int64_t> ranks;
  for (const matrix_summary& matrix : layer.matrices)
    if (matrix.group == group) ranks.insert(matrix.rank.value_or(dense));
  if (ranks.empty()) return "-";
  const auto text = [](std::int64_t rank) {
    return rank == dense ? std::string("dense") : std::to_string(rank);
  };
  const std::string least = text(*ranks.begin());
  return ranks.size() == 1 ? least : least + "-" + text(*ranks.rbegin());
}

void print(const model_summary& model, const model_config& config) {
  std::string types;
  for (const std::string& type : model.types)
    types += (types.empty() ? "" : ", ") + type;
  const auto number = [](auto value) { return static_cast<long long>(value); };
  std::printf("%s, %lld layers, hidden size %lld, %lld heads (%lld for keys) of %lld, ",
              config.architecture.c_str(), number(config.layers), number(config.hidden_size),
              number(config.heads), number(config.kv_heads), number(config.head_dim));
  std::printf("vocabulary %lld, %s\n", number(config.vocab), types.c_str());
  std::printf("%lld parameters in %lld bytes\n", number(model.parameters),
              number(model.file_bytes));
  if (config.compressed) {
    const compressed_info& info = *config.compressed;
    const std::string format =
        info.format == "factored" && info.form != "pair" ? info.form : info.format;
    std::printf("compressed by %s (%s), ratio %g; %.1f %% of the matrices' parameters removed\n",
                printable(info.method).c_str(), printable(format).c_str(), info.ratio,
                100 * model.removed_share());
  }
  if (config.experts > 0) {
    std::printf("%lld experts, of which a token has %lld\n", number(config.experts),
                number(config.experts_per_token));
  }
  const std::vector<column> columns = columns_of(model);
  const auto width = [](const column& c) {
    return static_cast<int>(std::max<std::size_t>(9, c.name.size()));
  };
  int widest = 12;
  for (const column& c : columns)
    widest = std::max(widest, static_cast<int>(c.name.size()));
  std::printf("\n%-*s %14s\n", widest, "matrix", "out x in");
  for (const column& c : columns)
    std::printf("%-*s %14s\n", widest, c.name.c_str(), c.shape.c_str());
  std::printf("\nranks\nlayer");
  for (const column& c : columns)
    std::printf(" %*s", width(c), c.name.c_str());
  std::printf(" %12s\n", "parameters");
  for (std::size_t index = 0; index < model.layers.size(); ++index) {
    std::printf("%5zu", index);
    for (const column& c : columns)
      std::printf(" %*s", width(c), ranks_in(model.layers[index], c.name).c_str());
    std::printf(" %12lld\n", number(model.layers[index].parameters));
  }
}

struct inspect_options {
  std::filesystem::path model;
  std::filesystem::path json;
};

void inspect(const inspect_options& options) {
  const model_config config = read_config(options.model);
  const checkpoint source = checkpoint::open(options.model);
  const model_summary model = summarise(source, config);
  if (!options.json.empty()) require_writable(options.json);
  print(model, config);
  if (!options.json.empty()) {
    write_whole_file(options.json, to_json(model, config).dump(2) + "\n");
  }
}

} // namespace

void add_inspect(CLI::App& app) {
  const auto options = std::make_shared<inspect_options>();
  CLI::App* const command =
      app.add_subcommand("inspect", "Show layers, shapes, ranks and parameter counts of a model");
  command->add_option("MODEL", options->model, "Model directory or GGUF file")->required();
  command->add_option("--json", options->json, "Write the same as JSON into this file");
  command->callback([options] { inspect(*options); });
}

} // namespace ressvd_llm
