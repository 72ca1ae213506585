// SPDX-License-Identifier: Apache-2.0
#include "io/ggml_blocks.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include <ressvd/core/scalar.hpp>

namespace ressvd_llm {
namespace {

float half_at(const std::byte* data) {
  ressvd::half stored;
  std::memcpy(&stored, data, sizeof stored);
  return ressvd::load<float>(stored);
}

int byte_at(const std::byte* data, std::size_t i) {
  return std::to_integer<int>(data[i]);
}

int signed_byte_at(const std::byte* data, std::size_t i) {
  return static_cast<std::int8_t>(data[i]);
}

// Element i of 32 whose low four bits lie in 16 bytes: the first half in the low ones.
int nibble(const std::byte* packed, std::size_t i) {
  return byte_at(packed, i % 16) >> (i < 16 ? 0 : 4) & 15;
}

// The fifth bits of 32 elements.
std::uint32_t fifth_bits(const std::byte* data) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, data, sizeof bits);
  return bits;
}

void decode_q8_0(const std::byte* data, float* y) {
  const float scale = half_at(data);
  for (std::size_t i = 0; i < 32; ++i)
    y[i] = scale * static_cast<float>(signed_byte_at(data + 2, i));
}

void decode_q4_0(const std::byte* data, float* y) {
  const float scale = half_at(data);
  for (std::size_t i = 0; i < 32; ++i)
    y[i] = scale * static_cast<float>(nibble(data + 2, i) - 8);
}

void decode_q4_1(const std::byte* data, float* y) {
  const float scale = half_at(data);
  const float least = half_at(data + 2);
  for (std::size_t i = 0; i < 32; ++i)
    y[i] = scale * static_cast<float>(nibble(data + 4, i)) + least;
}

int five_bits(const std::byte* packed, std::uint32_t high, std::size_t i) {
  return nibble(packed, i) | static_cast<int>(high >> i & 1u) << 4;
}

void decode_q5_0(const std::byte* data, float* y) {
  const float scale = half_at(data);
  const std::uint32_t high = fifth_bits(data + 2);
  for (std::size_t i = 0; i < 32; ++i)
    y[i] = scale * static_cast<float>(five_bits(data + 6, high, i) - 16);
}

void decode_q5_1(const std::byte* data, float* y) {
  const float scale = half_at(data);
  const float least = half_at(data + 2);
  const std::uint32_t high = fifth_bits(data + 4);
  for (std::size_t i = 0; i < 32; ++i)
    y[i] = scale * static_cast<float>(five_bits(data + 8, high, i)) + least;
}

// Two bits of element i of 256: four elements, 32 apart, share a byte.
int two_bits(const std::byte* packed, std::size_t i) {
  return byte_at(packed, i / 128 * 32 + i % 32) >> (i % 128 / 32 * 2) & 3;
}

void decode_q2_k(const std::byte* data, float* y) {
  const std::byte* const packed = data + 16;
  const float scale = half_at(data + 80);
  const float least = half_at(data + 82);
  for (std::size_t part = 0; part < 16; ++part) {
    const float s = scale * static_cast<float>(byte_at(data, part) & 15);
    const float m = least * static_cast<float>(byte_at(data, part) >> 4);
    for (std::size_t i = 16 * part; i < 16 * part + 16; ++i)
      y[i] = s * static_cast<float>(two_bits(packed, i)) - m;
  }
}

void decode_q3_k(const std::byte* data, float* y) {
  const std::byte* const high = data;
  const std::byte* const packed = data + 32;
  const std::byte* const scales = data + 96;
  const float scale = half_at(data + 108);
  for (std::size_t part = 0; part < 16; ++part) {
    const int low_bits = byte_at(scales, part % 8) >> (part < 8 ? 0 : 4) & 15;
    const int high_bits = byte_at(scales, 8 + part % 4) >> (part / 4 * 2) & 3;
    const float s = scale * static_cast<float>((low_bits | high_bits << 4) - 32);
    for (std::size_t i = 16 * part; i < 16 * part + 16; ++i) {
      const bool set = (byte_at(high, i % 32) >> (i / 32) & 1) != 0;
      y[i] = s * static_cast<float>(two_bits(packed, i) - (set ? 0 : 4));
    }
  }
}

// Scale and minimum of a part of 32, six bits each, of the eight that 12 bytes hold.
struct part_scale {
  int scale;
  int least;
};

part_scale scale_of_part(const std::byte* scales, std::size_t part) {
  if (part < 4) return {byte_at(scales, part) & 63, byte_at(scales, part + 4) & 63};
  const int low_bits = byte_at(scales, part + 4);
  return {(low_bits & 15) | byte_at(scales, part - 4) >> 6 << 4,
          low_bits >> 4 | byte_at(scales, part) >> 6 << 4};
}

// Four bits of element i of 256: two elements, 32 apart, share a byte.
int four_bits(const std::byte* packed, std::size_t i) {
  return byte_at(packed, i / 64 * 32 + i % 32) >> (i % 64 / 32 * 4) & 15;
}

void decode_q4_k(const std::byte* data, float* y) {
  for (std::size_t part = 0; part < 8; ++part) {
    const part_scale p = scale_of_part(data + 4, part);
    const float s = half_at(data) * static_cast<float>(p.scale);
    const float m = half_at(data + 2) * static_cast<float>(p.least);
    for (std::size_t i = 32 * part; i < 32 * part + 32; ++i)
      y[i] = s * static_cast<float>(four_bits(data + 16, i)) - m;
  }
}

void decode_q5_k(const std::byte* data, float* y) {
  const std::byte* const high = data + 16;
  for (std::size_t part = 0; part < 8; ++part) {
    const part_scale p = scale_of_part(data + 4, part);
    const float s = half_at(data) * static_cast<float>(p.scale);
    const float m = half_at(data + 2) * static_cast<float>(p.least);
    for (std::size_t i = 32 * part; i < 32 * part + 32; ++i) {
      const int fifth = byte_at(high, i % 32) >> part & 1;
      y[i] = s * static_cast<float>(four_bits(data + 48, i) | fifth << 4) - m;
    }
  }
}

void decode_q6_k(const std::byte* data, float* y) {
  const std::byte* const scales = data + 192;
  const float scale = half_at(data + 208);
  for (std::size_t part = 0; part < 16; ++part) {
    const float s = scale * static_cast<float>(signed_byte_at(scales, part));
    for (std::size_t i = 16 * part; i < 16 * part + 16; ++i) {
      const int low_bits = byte_at(data, i / 128 * 64 + i % 64) >> (i % 128 / 64 * 4) & 15;
      y[i] = s * static_cast<float>((low_bits | two_bits(data + 128, i) << 4) - 32);
    }
  }
}

} // namespace

void decode_block(dtype type, const std::byte* data, std::span<float> values) {
  switch (type) {
    case dtype::q8_0:
      return decode_q8_0(data, values.data());
    case dtype::q4_0:
      return decode_q4_0(data, values.data());
    case dtype::q4_1:
      return decode_q4_1(data, values.data());
    case dtype::q5_0:
      return decode_q5_0(data, values.data());
    case dtype::q5_1:
      return decode_q5_1(data, values.data());
    case dtype::q2_k:
      return decode_q2_k(data, values.data());
    case dtype::q3_k:
      return decode_q3_k(data, values.data());
    case dtype::q4_k:
      return decode_q4_k(data, values.data());
    case dtype::q5_k:
      return decode_q5_k(data, values.data());
    case dtype::q6_k:
      return decode_q6_k(data, values.data());
    default:
      throw std::invalid_argument(std::string(name_of(type)) + " has no blocks");
  }
}

void encode_q8_0(std::span<const float> values, std::byte* data) {
  float largest = 0;
  for (const float value : values)
    largest = std::max(largest, std::abs(value));
  const float scale = largest / 127.0f;
  // The scale of values this small is 0 in 16 bits, and so are they.
  const float inverse = scale == 0 ? 0.0f : 1.0f / scale;
  const bool vanishing = !std::isfinite(inverse);
  const auto stored = ressvd::store<ressvd::half>(scale);
  std::memcpy(data, &stored, sizeof stored);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const float q = vanishing ? 0.0f : std::round(values[i] * inverse);
    data[2 + i] = static_cast<std::byte>(static_cast<std::int8_t>(q));
  }
}

void encode_q4_0(std::span<const float> values, std::byte* data) {
  float extreme = 0;
  for (const float value : values) {
    if (std::abs(value) > std::abs(extreme)) extreme = value;
  }
  const float scale = extreme / -8.0f;
  const float inverse = scale == 0 ? 0.0f : 1.0f / scale;
  const bool vanishing = !std::isfinite(inverse);
  const auto stored = ressvd::store<ressvd::half>(scale);
  std::memcpy(data, &stored, sizeof stored);
  const auto quantised = [&](float value) {
    const float q = vanishing ? 8.0f : value * inverse + 8.5f;
    return std::min(15, static_cast<int>(q));
  };
  for (std::size_t i = 0; i < 16; ++i)
    data[2 + i] = static_cast<std::byte>(quantised(values[i]) | quantised(values[16 + i]) << 4);
}

} // namespace ressvd_llm
