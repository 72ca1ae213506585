// SPDX-License-Identifier: Apache-2.0
//
// Values in host memory: magnitudes as integers, strided copies, random numbers, sums.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "ressvd/core/matrix_view.hpp"
#include "ressvd/core/scalar.hpp"
#include "ressvd/core/types.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {

template <class T>
auto magnitude_bits(T value) {
  if constexpr (std::is_same_v<T, double>) {
    return std::bit_cast<std::uint64_t>(value) & 0x7fffffffffffffffu;
  } else if constexpr (std::is_same_v<T, float>) {
    return std::bit_cast<std::uint32_t>(value) & 0x7fffffffu;
  } else {
    return static_cast<std::uint16_t>(value.bits & 0x7fffu);
  }
}

template <class T, class Bits>
double from_magnitude_bits(Bits bits) {
  if constexpr (compute_scalar<T>) {
    return static_cast<double>(std::bit_cast<T>(bits));
  } else {
    T value;
    value.bits = bits;
    return static_cast<double>(static_cast<float>(value));
  }
}

/// out(i, j) ← in(i, j) for two strided matrices, in tiles that fit the first-level cache.
template <class From, class To, class Convert>
void copy_strided(const From* in, index_t in_row, index_t in_col, To* out, index_t out_row,
                  index_t out_col, index_t rows, index_t cols, Convert convert) {
  constexpr index_t tile = 64;
  for (index_t j0 = 0; j0 < cols; j0 += tile) {
    const index_t j1 = (std::min)(j0 + tile, cols);
    for (index_t i0 = 0; i0 < rows; i0 += tile) {
      const index_t i1 = (std::min)(i0 + tile, rows);
      for (index_t j = j0; j < j1; ++j) {
        for (index_t i = i0; i < i1; ++i) {
          out[i * out_row + j * out_col] = convert(in[i * in_row + j * in_col]);
        }
      }
    }
  }
}

template <class T>
index_t row_stride(const matrix_view<T>& a) {
  return a.order == layout::row_major ? a.ld : 1;
}
template <class T>
index_t col_stride(const matrix_view<T>& a) {
  return a.order == layout::row_major ? 1 : a.ld;
}

/// A counter-based generator (splitmix64's finaliser): the value at a counter depends on nothing
/// else, so the same numbers come out in any order.
inline std::uint64_t random_bits(std::uint64_t seed, std::uint64_t counter) {
  std::uint64_t z = seed + (counter + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

/// Uniform in (0, 1].
inline double random_uniform(std::uint64_t seed, std::uint64_t counter) {
  return (static_cast<double>(random_bits(seed, counter) >> 11) + 1.0) * 0x1p-53;
}

/// Σ f(k) for k in [0, count) with eight running sums, which the compiler can vectorise.
template <class F>
double sum_over(index_t count, F f) {
  std::array<double, 8> sums{};
  index_t k = 0;
  for (; k + 8 <= count; k += 8) {
    for (index_t lane = 0; lane < 8; ++lane)
      sums[static_cast<std::size_t>(lane)] += f(k + lane);
  }
  for (; k < count; ++k)
    sums[0] += f(k);
  double total = 0;
  for (const double s : sums)
    total += s;
  return total;
}

} // namespace detail
} // namespace v0
} // namespace ressvd
