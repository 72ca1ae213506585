// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "io/dtype.hpp"

namespace ressvd_llm {

// A named tensor in row-major order whose elements lie in memory owned by someone else (mostly a
// mapped file, at any alignment).
struct tensor_view {
  std::string name;
  dtype type = dtype::f32;
  std::vector<std::int64_t> shape;
  const std::byte* data = nullptr;
  // The two halves of rotary heads of this many rows lie interleaved: rows j and j + interleaved/2
  // of a head are stored as its rows 2j and 2j + 1. 0: rows are stored in order.
  std::int64_t interleaved = 0;
  // What every element is stored larger by.
  float added = 0;

  std::int64_t elements() const {
    std::int64_t product = 1;
    for (const std::int64_t extent : shape)
      product *= extent;
    return product;
  }
  std::size_t bytes() const { return bytes_of(type, elements()); }
  std::int64_t rows() const { return shape.empty() ? 1 : shape.front(); }
  // Where row `row` begins, which is not where the row before it ends when heads are interleaved.
  const std::byte* row(std::int64_t row) const;
};

// Where interleaved heads of this many rows have row `row`; 0: where it is.
std::int64_t stored_row(std::int64_t row, std::int64_t interleaved);

// The rows of a matrix (or the elements of a vector) where interleaved heads have them.
void interleave_rows(std::vector<float>& values, std::int64_t rows, std::int64_t interleaved);

// Converts `count` rows, of any number of dimensions, from `first` on to values, which they fill.
void decode_rows(const tensor_view& tensor, std::int64_t first, std::int64_t count,
                 std::span<float> values);
void decode_rows(const tensor_view& tensor, std::int64_t first, std::int64_t count,
                 std::span<double> values);

// "[4096, 128]".
std::string to_string(const std::vector<std::int64_t>& shape);

} // namespace ressvd_llm
