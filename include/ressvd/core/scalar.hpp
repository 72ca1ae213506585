// SPDX-License-Identifier: Apache-2.0
//
// Storage types of matrix elements. Kernels compute in float and double; half (IEEE binary16) and
// bfloat16 only store numbers, which become float when read. Both have the size and bits of their
// CUDA counterparts (__half, __nv_bfloat16), so pointers may be reinterpreted at that boundary.
#pragma once

#include <bit>
#include <concepts>
#include <cstdint>
#include <type_traits>

namespace ressvd {
inline namespace v0 {

/// IEEE 754 binary16. Conversion from float rounds to nearest even and overflows to infinity.
struct half {
  std::uint16_t bits = 0;

  half() = default;
  explicit half(float value) : bits(from_float(value)) {}
  explicit operator float() const { return to_float(bits); }

 private:
  static std::uint16_t from_float(float value) {
    const auto f = std::bit_cast<std::uint32_t>(value);
    const std::uint32_t sign = (f >> 16) & 0x8000u;
    const std::uint32_t magnitude = f & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);
    if (magnitude >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);
    if (magnitude < 0x38800000u) {
      // Adding 0.5 aligns the ulp of the sum with the ulp of a binary16 subnormal, so the FPU's
      // own rounding to nearest even is the one wanted.
      const float aligned = std::bit_cast<float>(magnitude) + 0.5f;
      return static_cast<std::uint16_t>(sign |
                                        (std::bit_cast<std::uint32_t>(aligned) - 0x3f000000u));
    }
    const std::uint32_t tie_to_even = (magnitude >> 13) & 1u;
    const std::uint32_t rounded = magnitude + 0xfffu + tie_to_even - (112u << 23);
    return static_cast<std::uint16_t>(sign | (rounded >> 13));
  }

  static float to_float(std::uint16_t h) {
    const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000u) << 16;
    const std::uint32_t magnitude = h & 0x7fffu;
    if (magnitude >= 0x7c00u) {
      return std::bit_cast<float>(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
    }
    // 2^112 moves binary16's exponent bias to binary32's, subnormals included.
    const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
    return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(scaled));
  }
};

/// The upper half of a binary32. Conversion from float rounds to nearest even.
struct bfloat16 {
  std::uint16_t bits = 0;

  bfloat16() = default;
  explicit bfloat16(float value) : bits(from_float(value)) {}
  explicit operator float() const {
    return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
  }

 private:
  static std::uint16_t from_float(float value) {
    const auto f = std::bit_cast<std::uint32_t>(value);
    if ((f & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((f >> 16) | 0x40u);
    const std::uint32_t tie_to_even = (f >> 16) & 1u;
    return static_cast<std::uint16_t>((f + 0x7fffu + tie_to_even) >> 16);
  }
};

static_assert(sizeof(half) == 2 && sizeof(bfloat16) == 2);

/// The types that kernels compute in.
template <class T>
concept compute_scalar = std::same_as<T, float> || std::same_as<T, double>;

/// The types that kernels read and write.
template <class T>
concept storage_scalar = compute_scalar<T> || std::same_as<T, half> || std::same_as<T, bfloat16>;

/// The value of a stored element in a compute type.
template <compute_scalar T, storage_scalar U>
T load(U value) {
  if constexpr (compute_scalar<U>) {
    return static_cast<T>(value);
  } else {
    return static_cast<T>(static_cast<float>(value));
  }
}

/// The stored form of a computed value. double → half goes through float (two roundings, an error
/// of at most 0.5 + 2^-13 units of the stored type's last place).
template <storage_scalar U, compute_scalar T>
U store(T value) {
  if constexpr (compute_scalar<U>) {
    return static_cast<U>(value);
  } else {
    return U(static_cast<float>(value));
  }
}

} // namespace v0
} // namespace ressvd
