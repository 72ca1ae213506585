// SPDX-License-Identifier: Apache-2.0
//
// The vocabulary every header shares: the index type, memory spaces, storage layouts.
#pragma once

#include <cstdint>

#include "ressvd/core/language.hpp"

namespace ressvd {
inline namespace v0 {

/// Signed and 64 bits wide everywhere: a 7B model's activations overflow 32-bit element counts.
using index_t = std::int64_t;

/// Memory that the CPU reads and writes.
struct host_space {};

/// Memory of a CUDA device. Named here so that views of it exist without the CUDA toolkit.
struct cuda_space {};

/// Where the element (i, j) of a matrix with leading dimension ld lies:
/// row_major at data[i * ld + j], col_major at data[i + j * ld].
enum class layout : std::uint8_t { row_major, col_major };

/// The operand of a product as it stands (none) or transposed.
enum class op : std::uint8_t { none, transpose };

/// The side from which a triangular or diagonal matrix acts: left is L·B, right is B·L.
enum class side : std::uint8_t { left, right };

constexpr op transposed(op o) {
  return o == op::none ? op::transpose : op::none;
}

} // namespace v0
} // namespace ressvd
