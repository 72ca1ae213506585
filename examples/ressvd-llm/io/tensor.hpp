// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
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

  std::int64_t elements() const {
    std::int64_t product = 1;
    for (const std::int64_t extent : shape)
      product *= extent;
    return product;
  }
  std::size_t bytes() const { return static_cast<std::size_t>(elements()) * size_of(type); }
};

// "[4096, 128]".
std::string to_string(const std::vector<std::int64_t>& shape);

} // namespace ressvd_llm
