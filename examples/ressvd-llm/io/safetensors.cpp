// SPDX-License-Identifier: Apache-2.0
#include "io/safetensors.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <optional>
#include <tuple>
#include <utility>

#include <nlohmann/json.hpp>

#include "io/error.hpp"
#include "io/json_text.hpp"

namespace ressvd_llm {
namespace {

// The format's own limit.
constexpr std::uint64_t largest_header = 100'000'000;

constexpr std::array<std::pair<std::string_view, std::uint64_t>, 22> bits_of_types{{
    {"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6},     {"U8", 8},
    {"I8", 8},      {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E5M2FNUZ", 8}, {"F8_E4M3FNUZ", 8},
    {"F8_E8M0", 8}, {"I16", 16},    {"U16", 16},    {"F16", 16},        {"BF16", 16},
    {"I32", 32},    {"U32", 32},    {"F32", 32},    {"C64", 64},        {"F64", 64},
    {"I64", 64},    {"U64", 64},
}};

struct header_entry {
  std::string name;
  std::optional<std::string> type;
  std::optional<std::vector<std::int64_t>> shape;
  std::optional<std::vector<std::int64_t>> offsets;
};

// Accepts exactly the header's form while parsing, so that nothing else is ever stored.
class header_parser {
 public:
  explicit header_parser(const std::filesystem::path& file) : file_(file) {}

  std::vector<header_entry> entries;

  bool start_object(std::size_t) {
    if (place_ == place::outside) {
      place_ = place::top;
    } else if (place_ == place::top && entries_name_ == "__metadata__") {
      place_ = place::metadata;
    } else if (place_ == place::top) {
      place_ = place::tensor;
      entries.push_back({entries_name_, std::nullopt, std::nullopt, std::nullopt});
    } else {
      refuse();
    }
    return true;
  }

  bool end_object() {
    if (place_ == place::tensor) {
      const header_entry& entry = entries.back();
      if (!entry.type) refuse("has no dtype");
      if (!entry.shape) refuse("has no shape");
      if (!entry.offsets || entry.offsets->size() != 2) refuse("has no two data_offsets");
    }
    place_ = place_ == place::top ? place::outside : place::top;
    return true;
  }

  bool key(std::string& text) {
    if (place_ == place::top) {
      entries_name_ = text;
    } else if (place_ == place::tensor) {
      key_ = text;
      const header_entry& entry = entries.back();
      const bool fresh = (key_ == "dtype" && !entry.type) || (key_ == "shape" && !entry.shape) ||
                         (key_ == "data_offsets" && !entry.offsets);
      if (!fresh) refuse("has an unknown or repeated key '" + printable(key_) + "'");
    }
    return true;
  }

  bool string(std::string& text) {
    if (place_ == place::metadata) return true;
    if (place_ != place::tensor || key_ != "dtype") refuse();
    entries.back().type = text;
    return true;
  }

  bool start_array(std::size_t) {
    if (place_ != place::tensor || key_ == "dtype") refuse();
    numbers().emplace();
    place_ = place::numbers;
    return true;
  }

  bool end_array() {
    place_ = place::tensor;
    return true;
  }

  bool number_unsigned(std::uint64_t number) {
    if (place_ != place::numbers) refuse();
    if (number > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
      refuse("has a size beyond 63 bits");
    }
    numbers()->push_back(static_cast<std::int64_t>(number));
    return true;
  }

  bool number_integer(std::int64_t) { return refuse("has a negative size"); }
  bool number_float(double, const std::string&) { return refuse("has a size that is no integer"); }
  bool null() { return refuse(); }
  bool boolean(bool) { return refuse(); }
  bool binary(std::vector<std::uint8_t>&) { return refuse(); }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception&) {
    throw file_error(file_, "header is not valid JSON (at byte " + std::to_string(8 + position) +
                                " of the file)");
  }

 private:
  enum class place { outside, top, metadata, tensor, numbers };

  std::optional<std::vector<std::int64_t>>& numbers() {
    return key_ == "shape" ? entries.back().shape : entries.back().offsets;
  }

  bool refuse(std::string_view what = "has a malformed entry in the header") const {
    if (place_ == place::outside) throw file_error(file_, "header is not a JSON object");
    throw file_error(file_, entries_name_, what);
  }

  const std::filesystem::path& file_;
  place place_ = place::outside;
  std::string entries_name_;
  std::string key_;
};

std::vector<header_entry> parse_header(const std::filesystem::path& file,
                                       std::span<const std::byte> header) {
  const auto* const text = reinterpret_cast<const char*>(header.data());
  header_parser parser(file);
  try {
    nlohmann::json::sax_parse(text, text + header.size(), &parser);
  } catch (const nlohmann::json::exception&) {
    throw file_error(file, "header is not valid JSON");
  }
  return std::move(parser.entries);
}

// Bytes that shape and type ask for.
std::uint64_t bytes_of(const std::filesystem::path& file, const header_entry& entry) {
  const auto* const type =
      std::find_if(bits_of_types.begin(), bits_of_types.end(),
                   [&](const auto& candidate) { return candidate.first == *entry.type; });
  if (type == bits_of_types.end()) {
    throw file_error(file, entry.name, "unknown element type '" + printable(*entry.type) + "'");
  }
  std::uint64_t bits = type->second;
  for (const std::int64_t extent : *entry.shape) {
    if (__builtin_mul_overflow(bits, static_cast<std::uint64_t>(extent), &bits)) {
      throw file_error(file, entry.name, "the product of its shape overflows");
    }
  }
  if (bits % 8 != 0) throw file_error(file, entry.name, "its size is no whole number of bytes");
  return bits / 8;
}

void require_unique_names(const std::filesystem::path& file,
                          const std::vector<header_entry>& entries) {
  std::vector<std::string_view> names;
  names.reserve(entries.size());
  for (const header_entry& entry : entries)
    names.push_back(entry.name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice != names.end()) throw file_error(file, *twice, "occurs twice in the header");
}

} // namespace

std::vector<stored_tensor> read_safetensors(const std::filesystem::path& file,
                                            std::span<const std::byte> content) {
  if (content.size() < 8) {
    throw file_error(
        file, "is not a safetensors file (only " + std::to_string(content.size()) + " bytes)");
  }
  std::uint64_t length = 0;
  std::memcpy(&length, content.data(), 8);
  content = content.subspan(8);
  if (length > content.size()) {
    throw file_error(file, "header of " + std::to_string(length) + " bytes reaches beyond the " +
                               std::to_string(content.size()) + " bytes that follow");
  }
  if (length > largest_header) {
    throw file_error(file, "header of " + std::to_string(length) + " bytes is above the limit of " +
                               std::to_string(largest_header));
  }
  std::vector<header_entry> entries =
      parse_header(file, content.first(static_cast<std::size_t>(length)));
  content = content.subspan(static_cast<std::size_t>(length));
  require_unique_names(file, entries);
  std::sort(entries.begin(), entries.end(), [](const header_entry& a, const header_entry& b) {
    return std::tie(*a.offsets, a.name) < std::tie(*b.offsets, b.name);
  });

  std::vector<stored_tensor> tensors;
  tensors.reserve(entries.size());
  std::uint64_t filled = 0;
  for (header_entry& entry : entries) {
    const auto begin = static_cast<std::uint64_t>((*entry.offsets)[0]);
    const auto end = static_cast<std::uint64_t>((*entry.offsets)[1]);
    const std::string range = "[" + std::to_string(begin) + ", " + std::to_string(end) + ")";
    if (begin > end) throw file_error(file, entry.name, "its data range " + range + " is reversed");
    if (end > content.size()) {
      throw file_error(file, entry.name,
                       "its data range " + range + " reaches beyond the " +
                           std::to_string(content.size()) +
                           " bytes of data in the file (truncated?)");
    }
    const std::uint64_t needed = bytes_of(file, entry);
    if (end - begin != needed) {
      throw file_error(file, entry.name,
                       "its shape and type need " + std::to_string(needed) +
                           " bytes, its data range " + range + " has " +
                           std::to_string(end - begin));
    }
    if (begin < filled) {
      throw file_error(
          file, entry.name,
          "its data range " + range + " overlaps that of tensor " + printable(tensors.back().name));
    }
    if (begin > filled) {
      throw file_error(file, entry.name,
                       "no tensor covers the " + std::to_string(begin - filled) +
                           " bytes before its data range " + range);
    }
    filled = end;
    tensors.push_back(
        {std::move(entry.name), std::move(*entry.type), std::move(*entry.shape),
         content.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin))});
  }
  if (filled != content.size()) {
    throw file_error(file, std::to_string(content.size() - filled) +
                               " bytes follow the data of the last tensor");
  }
  return tensors;
}

std::map<std::string, std::vector<std::string>> read_index(const std::filesystem::path& file,
                                                           std::string_view text) {
  const nlohmann::json index = parse_json(file, text);
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
    throw file_error(file, "has no object 'weight_map'");
  }
  std::map<std::string, std::vector<std::string>> names_of_shard;
  for (const auto& [name, shard] : index["weight_map"].items()) {
    if (!shard.is_string()) throw file_error(file, name, "its shard is not a file name");
    names_of_shard[shard.get<std::string>()].push_back(name);
  }
  return names_of_shard;
}

} // namespace ressvd_llm
