// SPDX-License-Identifier: Apache-2.0
#include "io/dtype.hpp"

#include <array>
#include <bit>
#include <cstring>
#include <stdexcept>
#include <string>

#include <ressvd/core/scalar.hpp>

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
void decode_any(dtype type, const std::byte* data, std::span<T> values) {
  switch (type) {
    case dtype::f32:
      return decode_as<float>(data, values);
    case dtype::f16:
      return decode_as<ressvd::half>(data, values);
    case dtype::bf16:
      return decode_as<ressvd::bfloat16>(data, values);
    case dtype::f64:
      return decode_as<double>(data, values);
    case dtype::i32:
      throw std::invalid_argument("I32 holds no weights");
  }
}

struct spelling {
  dtype type;
  std::size_t size;
  std::string_view safetensors, torch, option;
};

constexpr std::array spellings{
    spelling{dtype::f32, 4, "F32", "float32", "f32"},
    spelling{dtype::f16, 2, "F16", "float16", "f16"},
    spelling{dtype::bf16, 2, "BF16", "bfloat16", "bf16"},
    spelling{dtype::f64, 8, "F64", "float64", "f64"},
    spelling{dtype::i32, 4, "I32", "int32", "i32"},
};

const spelling& of(dtype type) {
  return spellings[static_cast<std::size_t>(type)];
}

} // namespace

std::size_t size_of(dtype type) {
  return of(type).size;
}

std::string_view name_of(dtype type) {
  return of(type).safetensors;
}

std::string_view torch_name_of(dtype type) {
  return of(type).torch;
}

std::optional<dtype> parse_dtype(std::string_view text) {
  for (const spelling& s : spellings) {
    if (text == s.safetensors || text == s.torch || text == s.option) return s.type;
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
    case dtype::f64:
    case dtype::i32:
      throw std::invalid_argument("weights are not written as " + std::string(name_of(type)));
  }
}

} // namespace ressvd_llm
