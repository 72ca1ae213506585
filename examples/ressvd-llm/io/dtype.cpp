// SPDX-License-Identifier: Apache-2.0
#include "io/dtype.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <stdexcept>
#include <string>

#include <ressvd/core/scalar.hpp>

#include "io/ggml_blocks.hpp"

namespace ressvd_llm {
namespace {

static_assert(std::endian::native == std::endian::little,
              "weights are read and written in the byte order of the files, little-endian");

template <class Stored, class T>
void decode_as(const std::byte* data, std::span<T> values) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    Stored stored;
    std::memcpy(&stored, data + i * sizeof(Stored), sizeof(Stored));
    values[i] = ressvd::load<T>(stored);
  }
}

template <class Stored>
void encode_as(std::span<const float> values, std::byte* data) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    const auto stored = ressvd::store<Stored>(values[i]);
    std::memcpy(data + i * sizeof(Stored), &stored, sizeof(Stored));
  }
}

template <class T>
void decode_blocks(dtype type, const std::byte* data, std::span<T> values) {
  const auto size = static_cast<std::size_t>(block_of(type));
  std::array<float, largest_block> block{};
  for (; !values.empty(); values = values.subspan(size), data += size_of(type)) {
    decode_block(type, data, std::span(block).first(size));
    std::copy_n(block.begin(), size, values.begin());
  }
}

template <class T>
void decode_any(dtype type, const std::byte* data, std::span<T> values) {
  if (is_quantised(type)) return decode_blocks(type, data, values);
  switch (type) {
    case dtype::f32:
      return decode_as<float>(data, values);
    case dtype::f16:
      return decode_as<ressvd::half>(data, values);
    case dtype::bf16:
      return decode_as<ressvd::bfloat16>(data, values);
    case dtype::f64:
      return decode_as<double>(data, values);
    default:
      throw std::invalid_argument("I32 holds no weights");
  }
}

struct spelling {
  dtype type;
  std::int64_t block;
  std::size_t size;
  std::string_view file, torch, option;
};

constexpr std::array spellings{
    spelling{dtype::f32, 1, 4, "F32", "float32", "f32"},
    spelling{dtype::f16, 1, 2, "F16", "float16", "f16"},
    spelling{dtype::bf16, 1, 2, "BF16", "bfloat16", "bf16"},
    spelling{dtype::f64, 1, 8, "F64", "float64", "f64"},
    spelling{dtype::i32, 1, 4, "I32", "int32", "i32"},
    spelling{dtype::q8_0, 32, 34, "Q8_0", "", "q8_0"},
    spelling{dtype::q4_0, 32, 18, "Q4_0", "", "q4_0"},
    spelling{dtype::q4_1, 32, 20, "Q4_1", "", "q4_1"},
    spelling{dtype::q5_0, 32, 22, "Q5_0", "", "q5_0"},
    spelling{dtype::q5_1, 32, 24, "Q5_1", "", "q5_1"},
    spelling{dtype::q2_k, 256, 84, "Q2_K", "", "q2_k"},
    spelling{dtype::q3_k, 256, 110, "Q3_K", "", "q3_k"},
    spelling{dtype::q4_k, 256, 144, "Q4_K", "", "q4_k"},
    spelling{dtype::q5_k, 256, 176, "Q5_K", "", "q5_k"},
    spelling{dtype::q6_k, 256, 210, "Q6_K", "", "q6_k"},
};

const spelling& of(dtype type) {
  return spellings[static_cast<std::size_t>(type)];
}

} // namespace

std::int64_t block_of(dtype type) {
  return of(type).block;
}

std::size_t size_of(dtype type) {
  return of(type).size;
}

std::size_t bytes_of(dtype type, std::int64_t elements) {
  return static_cast<std::size_t>(elements / block_of(type)) * size_of(type);
}

std::string_view name_of(dtype type) {
  return of(type).file;
}

std::string_view torch_name_of(dtype type) {
  return of(type).torch;
}

std::optional<dtype> parse_dtype(std::string_view text) {
  for (const spelling& s : spellings) {
    if (!text.empty() && (text == s.file || text == s.torch || text == s.option)) return s.type;
  }
  return std::nullopt;
}

void decode(dtype type, const std::byte* data, std::span<float> values) {
  decode_any(type, data, values);
}

void decode(dtype type, const std::byte* data, std::span<double> values) {
  decode_any(type, data, values);
}

void encode(std::span<const float> values, dtype type, std::byte* data) {
  switch (type) {
    case dtype::f32:
      return encode_as<float>(values, data);
    case dtype::f16:
      return encode_as<ressvd::half>(values, data);
    case dtype::bf16:
      return encode_as<ressvd::bfloat16>(values, data);
    case dtype::q8_0:
      for (; !values.empty(); values = values.subspan(32), data += size_of(type))
        encode_q8_0(values.first(32), data);
      return;
    case dtype::q4_0:
      for (; !values.empty(); values = values.subspan(32), data += size_of(type))
        encode_q4_0(values.first(32), data);
      return;
    default:
      throw std::invalid_argument("weights are not written as " + std::string(name_of(type)));
  }
}

} // namespace ressvd_llm
