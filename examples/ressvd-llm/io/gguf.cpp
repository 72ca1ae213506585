// SPDX-License-Identifier: Apache-2.0
#include "io/gguf.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>
#include <system_error>

#include "io/error.hpp"

namespace ressvd_llm {
namespace {

struct ggml_type {
  std::uint32_t number;
  std::string_view name;
  std::int64_t block;
  std::uint64_t size; // bytes of a block
};

constexpr std::array ggml_types{
    ggml_type{0, "F32", 1, 4},         ggml_type{1, "F16", 1, 2},
    ggml_type{2, "Q4_0", 32, 18},      ggml_type{3, "Q4_1", 32, 20},
    ggml_type{6, "Q5_0", 32, 22},      ggml_type{7, "Q5_1", 32, 24},
    ggml_type{8, "Q8_0", 32, 34},      ggml_type{9, "Q8_1", 32, 40},
    ggml_type{10, "Q2_K", 256, 84},    ggml_type{11, "Q3_K", 256, 110},
    ggml_type{12, "Q4_K", 256, 144},   ggml_type{13, "Q5_K", 256, 176},
    ggml_type{14, "Q6_K", 256, 210},   ggml_type{15, "Q8_K", 256, 292},
    ggml_type{16, "IQ2_XXS", 256, 66}, ggml_type{17, "IQ2_XS", 256, 74},
    ggml_type{18, "IQ3_XXS", 256, 98}, ggml_type{19, "IQ1_S", 256, 50},
    ggml_type{20, "IQ4_NL", 32, 18},   ggml_type{21, "IQ3_S", 256, 110},
    ggml_type{22, "IQ2_S", 256, 82},   ggml_type{23, "IQ4_XS", 256, 136},
    ggml_type{24, "I8", 1, 1},         ggml_type{25, "I16", 1, 2},
    ggml_type{26, "I32", 1, 4},        ggml_type{27, "I64", 1, 8},
    ggml_type{28, "F64", 1, 8},        ggml_type{29, "IQ1_M", 256, 56},
    ggml_type{30, "BF16", 1, 2},       ggml_type{34, "TQ1_0", 256, 54},
    ggml_type{35, "TQ2_0", 256, 66},   ggml_type{39, "MXFP4", 32, 17},
    ggml_type{40, "NVFP4", 64, 36},    ggml_type{41, "Q1_0", 128, 18},
};

constexpr std::uint32_t most_dimensions = 4;

std::uint64_t size_of_kind(gguf_kind kind) {
  switch (kind) {
    case gguf_kind::u8:
    case gguf_kind::i8:
    case gguf_kind::boolean:
      return 1;
    case gguf_kind::u16:
    case gguf_kind::i16:
      return 2;
    case gguf_kind::u32:
    case gguf_kind::i32:
    case gguf_kind::f32:
      return 4;
    case gguf_kind::u64:
    case gguf_kind::i64:
    case gguf_kind::f64:
      return 8;
    case gguf_kind::text:
    case gguf_kind::array:
      break;
  }
  return 0;
}

template <class T>
T number_at(const std::byte* data) {
  T number;
  std::memcpy(&number, data, sizeof number);
  return number;
}

// The bytes of a file from the first one on.
class gguf_reader {
 public:
  gguf_reader(const std::filesystem::path& file, std::span<const std::byte> content)
      : file_(file), content_(content) {}

  std::size_t position() const { return position_; }
  std::size_t left() const { return content_.size() - position_; }
  std::span<const std::byte> from(std::size_t begin) const {
    return content_.subspan(begin, position_ - begin);
  }

  std::span<const std::byte> take(std::uint64_t bytes, std::string_view what) {
    if (bytes > left()) {
      throw file_error(file_, std::string(what) + " at byte " + std::to_string(position_) +
                                  " needs " + std::to_string(bytes) + " bytes of the " +
                                  std::to_string(left()) + " that follow (truncated?)");
    }
    position_ += static_cast<std::size_t>(bytes);
    return content_.subspan(position_ - static_cast<std::size_t>(bytes),
                            static_cast<std::size_t>(bytes));
  }

  template <class T>
  T number(std::string_view what) {
    return number_at<T>(take(sizeof(T), what).data());
  }

  std::string_view text(std::string_view what) {
    const auto bytes = take(number<std::uint64_t>(what), what);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

 private:
  const std::filesystem::path& file_;
  std::span<const std::byte> content_;
  std::size_t position_ = 0;
};

gguf_kind read_kind(gguf_reader& reader, const std::filesystem::path& file, std::string_view key) {
  const auto number = reader.number<std::uint32_t>("the kind of a value");
  if (number > static_cast<std::uint32_t>(gguf_kind::f64)) {
    throw file_error(
        file, "key '" + printable(key) + "' has a value of unknown kind " + std::to_string(number));
  }
  return static_cast<gguf_kind>(number);
}

gguf_value read_pair(gguf_reader& reader, const std::filesystem::path& file) {
  const std::size_t begin = reader.position();
  gguf_value value;
  value.key = reader.text("a key");
  value.kind = read_kind(reader, file, value.key);
  if (value.kind == gguf_kind::array) {
    value.is_array = true;
    value.kind = read_kind(reader, file, value.key);
    value.count = reader.number<std::uint64_t>("the length of an array");
  }
  const std::size_t data = reader.position();
  if (value.kind == gguf_kind::array) {
    throw file_error(file, "key '" + printable(value.key) + "' is an array of arrays");
  }
  if (value.kind == gguf_kind::text) {
    for (std::uint64_t i = 0; i < value.count; ++i)
      reader.text("a text");
  } else {
    std::uint64_t bytes = 0;
    if (__builtin_mul_overflow(value.count, size_of_kind(value.kind), &bytes)) {
      throw file_error(file, "key '" + printable(value.key) + "' has a length that overflows");
    }
    reader.take(bytes, "a value");
  }
  value.data = reader.from(data);
  value.pair = reader.from(begin);
  return value;
}

struct tensor_entry {
  stored_tensor tensor;
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;
};

tensor_entry read_entry(gguf_reader& reader, const std::filesystem::path& file) {
  tensor_entry entry;
  stored_tensor& tensor = entry.tensor;
  tensor.name = reader.text("the name of a tensor");
  const auto dimensions = reader.number<std::uint32_t>("the description of a tensor");
  if (dimensions > most_dimensions) {
    throw file_error(file, tensor.name, "has " + std::to_string(dimensions) + " dimensions");
  }
  for (std::uint32_t i = 0; i < dimensions; ++i) {
    const auto extent = reader.number<std::int64_t>("the shape of a tensor");
    if (extent < 0) throw file_error(file, tensor.name, "has a size beyond 63 bits");
    tensor.shape.insert(tensor.shape.begin(), extent);
  }
  const auto number = reader.number<std::uint32_t>("the type of a tensor");
  const auto* const type =
      std::find_if(ggml_types.begin(), ggml_types.end(),
                   [&](const ggml_type& candidate) { return candidate.number == number; });
  if (type == ggml_types.end()) {
    throw file_error(file, tensor.name, "unknown element type " + std::to_string(number));
  }
  tensor.type = type->name;
  const std::int64_t width = tensor.shape.empty() ? 1 : tensor.shape.back();
  if (width % type->block != 0) {
    throw file_error(file, tensor.name,
                     "its rows of " + std::to_string(width) + " elements are no whole blocks of " +
                         std::string(type->name));
  }
  std::int64_t elements = 1;
  for (const std::int64_t extent : tensor.shape) {
    if (__builtin_mul_overflow(elements, extent, &elements)) {
      throw file_error(file, tensor.name, "the product of its shape overflows");
    }
  }
  if (__builtin_mul_overflow(static_cast<std::uint64_t>(elements / type->block), type->size,
                             &entry.bytes)) {
    throw file_error(file, tensor.name, "the product of its shape overflows");
  }
  entry.offset = reader.number<std::uint64_t>("the offset of a tensor");
  return entry;
}

std::uint64_t filled_up(std::uint64_t bytes, std::uint64_t alignment) {
  return (bytes + alignment - 1) / alignment * alignment;
}

std::uint64_t alignment_of(const gguf_metadata& metadata) {
  constexpr std::string_view key = "general.alignment";
  constexpr std::int64_t largest = 1 << 20;
  const std::int64_t alignment = metadata.integer(key).value_or(gguf_alignment);
  if (alignment < 1 || alignment > largest || (alignment & (alignment - 1)) != 0) {
    metadata.fail(key, "(" + std::to_string(alignment) + ") is no power of two up to 2^20");
  }
  return static_cast<std::uint64_t>(alignment);
}

void require_distinct(const std::filesystem::path& file, std::vector<std::string_view> names,
                      std::string_view what) {
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice == names.end()) return;
  throw file_error(file, std::string(what) + " '" + printable(*twice) + "' occurs twice");
}

std::vector<stored_tensor> place_tensors(const std::filesystem::path& file,
                                         std::vector<tensor_entry> entries,
                                         std::span<const std::byte> data, std::uint64_t alignment) {
  std::stable_sort(
      entries.begin(), entries.end(),
      [](const tensor_entry& a, const tensor_entry& b) { return a.offset < b.offset; });
  std::vector<stored_tensor> tensors;
  tensors.reserve(entries.size());
  std::uint64_t filled = 0;
  for (tensor_entry& entry : entries) {
    const std::string& name = entry.tensor.name;
    const std::string place =
        std::to_string(entry.bytes) + " bytes of data at offset " + std::to_string(entry.offset);
    if (entry.offset % alignment != 0) {
      throw file_error(file, name,
                       "its " + place + " are not aligned to " + std::to_string(alignment));
    }
    if (entry.offset > data.size() || entry.bytes > data.size() - entry.offset) {
      throw file_error(file, name,
                       "its " + place + " reach beyond the " + std::to_string(data.size()) +
                           " of the file (truncated?)");
    }
    if (entry.offset < filled) {
      throw file_error(
          file, name,
          "its " + place + " overlap those of tensor " + printable(tensors.back().name));
    }
    if (entry.offset != filled_up(filled, alignment)) {
      throw file_error(file, name,
                       "no tensor covers the " + std::to_string(entry.offset - filled) +
                           " bytes before its " + place);
    }
    filled = entry.offset + entry.bytes;
    entry.tensor.data =
        data.subspan(static_cast<std::size_t>(entry.offset), static_cast<std::size_t>(entry.bytes));
    tensors.push_back(std::move(entry.tensor));
  }
  if (data.size() > filled_up(filled, alignment)) {
    throw file_error(
        file, std::to_string(data.size() - filled) + " bytes follow the data of the last tensor");
  }
  return tensors;
}

} // namespace

gguf_content read_gguf(const std::filesystem::path& file, std::span<const std::byte> content) {
  gguf_reader reader(file, content);
  constexpr std::string_view magic = "GGUF";
  if (content.size() < magic.size() ||
      std::memcmp(content.data(), magic.data(), magic.size()) != 0) {
    throw file_error(file, "is not a GGUF file");
  }
  reader.take(magic.size(), "the header");
  const auto version = reader.number<std::uint32_t>("the version");
  if (version == 0x02000000u || version == 0x03000000u) {
    throw file_error(file, "is a big-endian GGUF file, which is not supported");
  }
  if (version != 2 && version != 3) {
    throw file_error(file, "version " + std::to_string(version) +
                               " of GGUF is not supported (versions 2 and 3 are)");
  }
  const auto tensor_count = reader.number<std::uint64_t>("the number of tensors");
  const auto pair_count = reader.number<std::uint64_t>("the number of pairs");

  // Nothing is reserved for the counts: they may be lies, and what they count is not.
  std::vector<gguf_value> values;
  for (std::uint64_t i = 0; i < pair_count; ++i)
    values.push_back(read_pair(reader, file));
  std::vector<std::string_view> keys;
  for (const gguf_value& value : values)
    keys.push_back(value.key);
  require_distinct(file, std::move(keys), "key");
  gguf_metadata metadata(file, std::move(values));
  const std::uint64_t alignment = alignment_of(metadata);

  std::vector<tensor_entry> entries;
  for (std::uint64_t i = 0; i < tensor_count; ++i)
    entries.push_back(read_entry(reader, file));
  std::vector<std::string_view> names;
  for (const tensor_entry& entry : entries)
    names.push_back(entry.tensor.name);
  require_distinct(file, std::move(names), "tensor");

  const std::uint64_t begin = filled_up(reader.position(), alignment);
  const auto data = begin < content.size() ? content.subspan(static_cast<std::size_t>(begin))
                                           : std::span<const std::byte>();
  std::vector<stored_tensor> tensors = place_tensors(file, std::move(entries), data, alignment);
  return {std::move(metadata), std::move(tensors)};
}

bool is_gguf(const std::filesystem::path& path) {
  std::error_code ignored;
  return std::filesystem::is_regular_file(path, ignored);
}

gguf_metadata::gguf_metadata(std::filesystem::path file, std::vector<gguf_value> values)
    : file_(std::move(file)), values_(std::move(values)) {}

const gguf_value* gguf_metadata::find(std::string_view key) const {
  const auto found = std::find_if(values_.begin(), values_.end(),
                                  [&](const gguf_value& value) { return value.key == key; });
  return found == values_.end() ? nullptr : &*found;
}

void gguf_metadata::fail(std::string_view key, const std::string& what) const {
  throw file_error(file_, "key '" + printable(key) + "' " + what);
}

std::optional<std::int64_t> gguf_metadata::integer(std::string_view key) const {
  const gguf_value* const value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_array) fail(key, "is an array, not an integer");
  const std::byte* const data = value->data.data();
  switch (value->kind) {
    case gguf_kind::u8:
      return number_at<std::uint8_t>(data);
    case gguf_kind::i8:
      return number_at<std::int8_t>(data);
    case gguf_kind::u16:
      return number_at<std::uint16_t>(data);
    case gguf_kind::i16:
      return number_at<std::int16_t>(data);
    case gguf_kind::u32:
      return number_at<std::uint32_t>(data);
    case gguf_kind::i32:
      return number_at<std::int32_t>(data);
    case gguf_kind::i64:
      return number_at<std::int64_t>(data);
    case gguf_kind::u64:
      if (number_at<std::int64_t>(data) < 0) fail(key, "is too large");
      return number_at<std::int64_t>(data);
    case gguf_kind::f32:
    case gguf_kind::f64:
    case gguf_kind::boolean:
    case gguf_kind::text:
    case gguf_kind::array:
      break;
  }
  fail(key, "is not an integer");
}

std::optional<double> gguf_metadata::number(std::string_view key) const {
  const gguf_value* const value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_array) fail(key, "is an array, not a number");
  if (value->kind != gguf_kind::f32 && value->kind != gguf_kind::f64)
    return static_cast<double>(*integer(key));
  double number = 0;
  if (value->kind == gguf_kind::f64) {
    number = number_at<double>(value->data.data());
  } else {
    const auto single = number_at<float>(value->data.data());
    number = static_cast<double>(single);
    std::array<char, 64> decimal{};
    const auto end = std::to_chars(decimal.data(), decimal.data() + decimal.size(), single).ptr;
    if (std::isfinite(single)) std::from_chars(decimal.data(), end, number);
  }
  if (!std::isfinite(number)) fail(key, "is not finite");
  return number;
}

const gguf_value* gguf_metadata::of_kind(std::string_view key, gguf_kind kind, bool array) const {
  const gguf_value* const value = find(key);
  if (value == nullptr) return nullptr;
  if (value->kind != kind || value->is_array != array)
    fail(key, "has a value of another kind than expected");
  return value;
}

std::optional<bool> gguf_metadata::flag(std::string_view key) const {
  const gguf_value* const value = of_kind(key, gguf_kind::boolean, false);
  if (value == nullptr) return std::nullopt;
  return value->data.front() != std::byte{0};
}

namespace {

std::vector<std::string> texts_of(const gguf_value& value, const std::filesystem::path& file) {
  gguf_reader reader(file, value.data);
  std::vector<std::string> texts;
  texts.reserve(static_cast<std::size_t>(value.count));
  for (std::uint64_t i = 0; i < value.count; ++i)
    texts.emplace_back(reader.text("a text"));
  return texts;
}

template <class T>
std::vector<T> numbers_of(const gguf_value& value) {
  std::vector<T> numbers(static_cast<std::size_t>(value.count));
  if (!numbers.empty()) std::memcpy(numbers.data(), value.data.data(), value.data.size());
  return numbers;
}

} // namespace

std::optional<std::string> gguf_metadata::text(std::string_view key) const {
  const gguf_value* const value = of_kind(key, gguf_kind::text, false);
  if (value == nullptr) return std::nullopt;
  return texts_of(*value, file_).front();
}

std::optional<std::vector<std::string>> gguf_metadata::texts(std::string_view key) const {
  const gguf_value* const value = of_kind(key, gguf_kind::text, true);
  if (value == nullptr) return std::nullopt;
  return texts_of(*value, file_);
}

std::optional<std::vector<std::int32_t>> gguf_metadata::integers(std::string_view key) const {
  const gguf_value* const value = of_kind(key, gguf_kind::i32, true);
  if (value == nullptr) return std::nullopt;
  return numbers_of<std::int32_t>(*value);
}

std::optional<std::vector<float>> gguf_metadata::numbers(std::string_view key) const {
  const gguf_value* const value = of_kind(key, gguf_kind::f32, true);
  if (value == nullptr) return std::nullopt;
  return numbers_of<float>(*value);
}

std::optional<std::vector<bool>> gguf_metadata::flags(std::string_view key) const {
  const gguf_value* const value = of_kind(key, gguf_kind::boolean, true);
  if (value == nullptr) return std::nullopt;
  std::vector<bool> flags;
  for (const std::byte flag : value->data)
    flags.push_back(flag != std::byte{0});
  return flags;
}

namespace {

template <class T>
void append(std::string& bytes, T number) {
  std::array<char, sizeof(T)> raw;
  std::memcpy(raw.data(), &number, sizeof(T));
  bytes.append(raw.data(), raw.size());
}

void append_text(std::string& bytes, std::string_view text) {
  append<std::uint64_t>(bytes, text.size());
  bytes += text;
}

} // namespace

void gguf_pairs::begin(std::string_view key, gguf_kind kind) {
  append_text(bytes_, key);
  append(bytes_, static_cast<std::uint32_t>(kind));
  ++count_;
}

void gguf_pairs::text(std::string_view key, std::string_view value) {
  begin(key, gguf_kind::text);
  append_text(bytes_, value);
}

void gguf_pairs::u32(std::string_view key, std::uint32_t value) {
  begin(key, gguf_kind::u32);
  append(bytes_, value);
}

void gguf_pairs::f32(std::string_view key, float value) {
  begin(key, gguf_kind::f32);
  append(bytes_, value);
}

void gguf_pairs::flag(std::string_view key, bool value) {
  begin(key, gguf_kind::boolean);
  append(bytes_, static_cast<std::uint8_t>(value));
}

void gguf_pairs::begin_array(std::string_view key, gguf_kind kind, std::size_t count) {
  begin(key, gguf_kind::array);
  append(bytes_, static_cast<std::uint32_t>(kind));
  append(bytes_, static_cast<std::uint64_t>(count));
}

void gguf_pairs::texts(std::string_view key, std::span<const std::string> values) {
  begin_array(key, gguf_kind::text, values.size());
  for (const std::string& value : values)
    append_text(bytes_, value);
}

void gguf_pairs::integers(std::string_view key, std::span<const std::int32_t> values) {
  begin_array(key, gguf_kind::i32, values.size());
  for (const std::int32_t value : values)
    append(bytes_, value);
}

void gguf_pairs::numbers(std::string_view key, std::span<const float> values) {
  begin_array(key, gguf_kind::f32, values.size());
  for (const float value : values)
    append(bytes_, value);
}

void gguf_pairs::flags(std::string_view key, const std::vector<bool>& values) {
  begin_array(key, gguf_kind::boolean, values.size());
  for (const bool value : values)
    append(bytes_, static_cast<std::uint8_t>(value));
}

void gguf_pairs::copy(const gguf_value& value) {
  bytes_.append(reinterpret_cast<const char*>(value.pair.data()), value.pair.size());
  ++count_;
}

std::string gguf_header(const gguf_pairs& pairs, std::span<const gguf_tensor> tensors) {
  std::string header = "GGUF";
  append<std::uint32_t>(header, 3);
  append<std::uint64_t>(header, tensors.size());
  append<std::uint64_t>(header, pairs.count());
  header += pairs.bytes();
  std::uint64_t offset = 0;
  for (const gguf_tensor& tensor : tensors) {
    append_text(header, tensor.name);
    append(header, static_cast<std::uint32_t>(tensor.shape.size()));
    for (auto extent = tensor.shape.rbegin(); extent != tensor.shape.rend(); ++extent)
      append(header, *extent);
    const auto* const type = std::find_if(
        ggml_types.begin(), ggml_types.end(),
        [&](const ggml_type& candidate) { return candidate.name == name_of(tensor.type); });
    append(header, type->number);
    append(header, offset);
    offset = filled_up(offset + tensor.bytes, gguf_alignment);
  }
  header.resize(static_cast<std::size_t>(filled_up(header.size(), gguf_alignment)), '\0');
  return header;
}

} // namespace ressvd_llm
