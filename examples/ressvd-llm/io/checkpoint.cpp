// SPDX-License-Identifier: Apache-2.0
#include "io/checkpoint.hpp"

#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <utility>

#include "io/config.hpp"
#include "io/error.hpp"
#include "io/gguf.hpp"
#include "io/gguf_model.hpp"
#include "io/mapped_file.hpp"
#include "io/paths.hpp"
#include "io/safetensors.hpp"

namespace ressvd_llm {
namespace {

constexpr std::uint64_t largest_index = 16'777'216;
constexpr std::string_view single_name = "model.safetensors";
constexpr std::string_view index_name = "model.safetensors.index.json";

bool present(const std::filesystem::path& file) {
  std::error_code ignored;
  return std::filesystem::symlink_status(file, ignored).type() !=
         std::filesystem::file_type::not_found;
}

} // namespace

struct checkpoint::contents {
  struct shard {
    std::filesystem::path file;
    mapped_file mapping;
  };
  struct entry {
    std::size_t shard;
    std::string type;
    std::optional<dtype> readable;
    tensor_view view;
    std::span<const std::byte> data;
  };

  std::filesystem::path path;
  std::vector<shard> shards;
  std::map<std::string, entry, std::less<>> tensors;

  void add_shard(const std::filesystem::path& file) {
    shards.push_back({file, mapped_file(file)});
    for (stored_tensor& tensor : read_safetensors(file, shards.back().mapping.bytes())) {
      const std::optional<dtype> readable = parse_dtype(tensor.type);
      tensor_view view{tensor.name, readable.value_or(dtype::f32), std::move(tensor.shape),
                       tensor.data.data()};
      tensors.insert_or_assign(
          std::move(tensor.name),
          entry{shards.size() - 1, std::move(tensor.type), readable, std::move(view), tensor.data});
    }
  }

  // Under the names of a Hugging Face checkpoint. What describes the rotary embedding is part of
  // the config.
  void add_gguf(const std::filesystem::path& file) {
    shards.push_back({file, mapped_file(file)});
    gguf_content content = read_gguf(file, shards.back().mapping.bytes());
    const model_config config = parse_config(file, config_text_of(content));
    for (stored_tensor& tensor : content.tensors) {
      if (tensor.name == rope_factors_name) continue;
      std::string name = name_in(config, checkpoint_name(config.family, tensor.name));
      const std::optional<dtype> readable = parse_dtype(tensor.type);
      tensor_view view{name, readable.value_or(dtype::f32), std::move(tensor.shape),
                       tensor.data.data()};
      // Fused matrices have their rows in order.
      const std::int64_t heads =
          config.family == model_family::phi3 ? 0 : interleaved_heads(config, name);
      if (heads > 0 && view.rows() % heads == 0) view.interleaved = heads;
      const auto add = [&](const std::string& under, entry added) {
        if (!tensors.try_emplace(under, std::move(added)).second) {
          throw file_error(file, tensor.name, "stands beside tensor " + printable(under));
        }
      };
      view.added = added_in_gguf(config, name);
      entry whole{0, std::move(tensor.type), readable, std::move(view), tensor.data};
      if (expert_part(config, name, 0).empty()) {
        add(name, std::move(whole));
        continue;
      }
      if (config.experts < 1 || whole.view.shape.size() != 3 ||
          whole.view.rows() != config.experts) {
        throw file_error(file, tensor.name,
                         "shape " + to_string(whole.view.shape) + " is not that of " +
                             std::to_string(config.experts) + " experts' matrices");
      }
      const std::size_t bytes = whole.data.size() / static_cast<std::size_t>(config.experts);
      for (std::int64_t e = 0; e < config.experts; ++e) {
        entry own = whole;
        own.view.name = expert_part(config, name, e);
        own.view.shape.erase(own.view.shape.begin());
        own.data = whole.data.subspan(static_cast<std::size_t>(e) * bytes, bytes);
        own.view.data = own.data.data();
        const std::string under = own.view.name;
        add(under, std::move(own));
      }
    }
    split_fused();
  }

  void add_index(const std::filesystem::path& file) {
    const auto names_of_shard = read_index(file, read_text(file, largest_index));
    for (const auto& [shard_name, names] : names_of_shard) {
      std::filesystem::path shard_file;
      try {
        shard_file = file_inside(path, shard_name);
      } catch (const file_error& error) {
        throw file_error(file, names.front(), std::string("its shard ") + error.what());
      }
      // What an index places in another shard, or nowhere, is not part of the model.
      contents whole_shard;
      whole_shard.add_shard(shard_file);
      for (const std::string& name : names) {
        auto node = whole_shard.tensors.extract(name);
        if (node.empty()) {
          throw file_error(shard_file, name, "missing, although the index places it here");
        }
        node.mapped().shard = shards.size();
        tensors.insert(std::move(node));
      }
      shards.push_back(std::move(whole_shard.shards.front()));
    }
  }

  // Takes the rows of a matrix apart, under names that take the place of its last component.
  struct part {
    const char* module;
    std::int64_t rows;
  };
  void split(const std::string& name, const std::vector<part>& parts) {
    const auto node = tensors.extract(name);
    const entry& whole = node.mapped();
    const tensor_view& view = whole.view;
    std::int64_t rows = 0;
    for (const part& p : parts)
      rows += p.rows;
    if (view.shape.size() > 2 || view.shape.empty() || view.rows() != rows) {
      throw file_error(shards[whole.shard].file, name,
                       "shape " + to_string(view.shape) + " where " + std::to_string(rows) +
                           " rows are expected");
    }
    const std::size_t module_end = name.rfind('.');
    const std::size_t module_begin = name.rfind('.', module_end - 1) + 1;
    const std::size_t row_bytes = whole.data.size() / static_cast<std::size_t>(rows);
    std::size_t at = 0;
    for (const part& p : parts) {
      entry piece = whole;
      piece.view.name = name.substr(0, module_begin) + p.module + name.substr(module_end);
      piece.view.shape[0] = p.rows;
      const std::size_t bytes = static_cast<std::size_t>(p.rows) * row_bytes;
      piece.data = whole.data.subspan(at, bytes);
      piece.view.data = piece.data.data();
      at += bytes;
      const std::string piece_name = piece.view.name;
      if (!tensors.try_emplace(piece_name, std::move(piece)).second) {
        throw file_error(shards[whole.shard].file, piece_name,
                         "stands beside tensor " + printable(name));
      }
    }
  }

  // Phi-3 stores q, k and v as one matrix, and gate and up.
  void split_fused() {
    const auto is_qkv = [](std::string_view name) { return name.ends_with(".qkv_proj.weight"); };
    const auto is_inner = [](std::string_view name) {
      return name.ends_with(".gate_up_proj.weight");
    };
    std::vector<std::string> fused;
    for (const auto& [name, stored] : tensors) {
      if (is_qkv(name) || is_inner(name)) fused.push_back(name);
    }
    if (fused.empty()) return;
    const model_config config = read_config(path);
    if (config.family != model_family::phi3) return;
    const std::int64_t q_rows = config.heads * config.head_dim;
    const std::int64_t kv_rows = config.kv_heads * config.head_dim;
    for (const std::string& name : fused) {
      if (is_qkv(name)) {
        split(name, {{"q_proj", q_rows}, {"k_proj", kv_rows}, {"v_proj", kv_rows}});
      } else {
        split(name,
              {{"gate_proj", config.intermediate_size}, {"up_proj", config.intermediate_size}});
      }
    }
  }

  const entry& at(std::string_view name) const {
    const auto found = tensors.find(name);
    if (found == tensors.end()) throw file_error(path, name, "missing");
    return found->second;
  }
};

checkpoint::checkpoint(std::shared_ptr<const contents> data) : data_(std::move(data)) {}

checkpoint checkpoint::open(const std::filesystem::path& model) {
  auto data = std::make_shared<contents>();
  data->path = model;
  if (is_gguf(model)) {
    data->add_gguf(model);
  } else if (present(model / single_name)) {
    data->add_shard(file_inside(model, single_name));
    data->split_fused();
  } else if (present(model / index_name)) {
    data->add_index(file_inside(model, index_name));
    data->split_fused();
  } else if (!present(model)) {
    throw file_error(model, "no such directory or file");
  } else {
    throw file_error(
        model, "holds neither " + std::string(single_name) + " nor " + std::string(index_name));
  }
  return checkpoint(std::move(data));
}

checkpoint checkpoint::open_file(const std::filesystem::path& file) {
  auto data = std::make_shared<contents>();
  data->path = file;
  data->add_shard(file);
  return checkpoint(std::move(data));
}

bool checkpoint::contains(std::string_view name) const {
  return data_->tensors.find(name) != data_->tensors.end();
}

const tensor_view& checkpoint::at(std::string_view name) const {
  const contents::entry& entry = data_->at(name);
  if (!entry.readable || entry.readable == dtype::i32) {
    if (is_gguf(data_->path))
      throw file_error(file_of(name), name, "element type " + entry.type + " is not supported");
    throw file_error(file_of(name), name,
                     "element type " + entry.type + " where F32, F16 or BF16 is expected");
  }
  return entry.view;
}

const tensor_view& checkpoint::at_i32(std::string_view name) const {
  const contents::entry& entry = data_->at(name);
  if (entry.readable != dtype::i32) {
    throw file_error(file_of(name), name, "element type " + entry.type + " where I32 is expected");
  }
  return entry.view;
}

std::vector<std::string> checkpoint::names() const {
  std::vector<std::string> names;
  names.reserve(data_->tensors.size());
  for (const auto& [name, entry] : data_->tensors)
    names.push_back(name);
  return names;
}

const std::filesystem::path& checkpoint::file_of(std::string_view name) const {
  return data_->shards[data_->at(name).shard].file;
}

checkpoint::description checkpoint::describe(std::string_view name) const {
  const contents::entry& entry = data_->at(name);
  return {entry.type, entry.view.shape, entry.view.elements(), entry.data.size()};
}

std::uint64_t checkpoint::file_bytes() const {
  std::uint64_t sum = 0;
  for (const contents::shard& shard : data_->shards)
    sum += shard.mapping.bytes().size();
  return sum;
}

const std::filesystem::path& checkpoint::path() const {
  return data_->path;
}

void checkpoint::release(std::string_view name) const {
  const contents::entry& entry = data_->at(name);
  data_->shards[entry.shard].mapping.release(entry.data);
}

namespace {

void require_shape(const checkpoint& source, const tensor_view& tensor,
                   const std::vector<std::int64_t>& shape) {
  if (tensor.shape != shape) {
    throw file_error(
        source.file_of(tensor.name), tensor.name,
        "shape " + to_string(tensor.shape) + " where " + to_string(shape) + " is expected");
  }
}

template <class T>
std::vector<T> read_as(const checkpoint& source, std::string_view name,
                       const std::vector<std::int64_t>& shape) {
  const tensor_view& tensor = source.at(name);
  require_shape(source, tensor, shape);
  std::vector<T> values(static_cast<std::size_t>(tensor.elements()));
  decode_rows(tensor, 0, tensor.rows(), std::span(values));
  source.release(name);
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i])) {
      throw file_error(source.file_of(name), name,
                       "element " + std::to_string(i) + " is not finite");
    }
  }
  return values;
}

} // namespace

void require_shape(const checkpoint& source, std::string_view name,
                   const std::vector<std::int64_t>& shape) {
  require_shape(source, source.at(name), shape);
}

void require_i32_shape(const checkpoint& source, std::string_view name,
                       const std::vector<std::int64_t>& shape) {
  require_shape(source, source.at_i32(name), shape);
}

std::vector<float> read_f32(const checkpoint& source, std::string_view name,
                            const std::vector<std::int64_t>& shape) {
  return read_as<float>(source, name, shape);
}

std::vector<double> read_f64(const checkpoint& source, std::string_view name,
                             const std::vector<std::int64_t>& shape) {
  return read_as<double>(source, name, shape);
}

std::vector<std::int32_t> read_i32(const checkpoint& source, std::string_view name,
                                   const std::vector<std::int64_t>& shape) {
  const tensor_view& tensor = source.at_i32(name);
  require_shape(source, tensor, shape);
  std::vector<std::int32_t> values(static_cast<std::size_t>(tensor.elements()));
  if (!values.empty()) std::memcpy(values.data(), tensor.data, tensor.bytes());
  source.release(name);
  return values;
}

} // namespace ressvd_llm
