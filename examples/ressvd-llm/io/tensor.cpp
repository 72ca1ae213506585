// SPDX-License-Identifier: Apache-2.0
#include "io/tensor.hpp"

#include <algorithm>

namespace ressvd_llm {
namespace {

template <class T>
void decode_stored_rows(const tensor_view& tensor, std::int64_t first, std::int64_t count,
                        std::span<T> values) {
  if (tensor.interleaved == 0) return decode(tensor.type, tensor.row(first), values);
  const std::size_t width = values.size() / static_cast<std::size_t>(count);
  for (std::int64_t i = 0; i < count; ++i) {
    decode(tensor.type, tensor.row(first + i),
           values.subspan(static_cast<std::size_t>(i) * width, width));
  }
}

template <class T>
void decode_rows_as(const tensor_view& tensor, std::int64_t first, std::int64_t count,
                    std::span<T> values) {
  if (values.empty()) return;
  decode_stored_rows(tensor, first, count, values);
  if (tensor.added == 0) return;
  for (T& value : values)
    value -= static_cast<T>(tensor.added);
}

} // namespace

std::int64_t stored_row(std::int64_t row, std::int64_t interleaved) {
  if (interleaved == 0) return row;
  const std::int64_t half = interleaved / 2;
  const std::int64_t within = row % interleaved;
  return row - within + 2 * (within % half) + within / half;
}

void interleave_rows(std::vector<float>& values, std::int64_t rows, std::int64_t interleaved) {
  if (interleaved == 0) return;
  const std::vector<float> ordered = values;
  const auto width = static_cast<std::ptrdiff_t>(values.size()) / rows;
  for (std::int64_t row = 0; row < rows; ++row) {
    std::copy_n(ordered.begin() + row * width, width,
                values.begin() + stored_row(row, interleaved) * width);
  }
}

const std::byte* tensor_view::row(std::int64_t row) const {
  return data + bytes_of(type, stored_row(row, interleaved) * (elements() / rows()));
}

void decode_rows(const tensor_view& tensor, std::int64_t first, std::int64_t count,
                 std::span<float> values) {
  decode_rows_as(tensor, first, count, values);
}

void decode_rows(const tensor_view& tensor, std::int64_t first, std::int64_t count,
                 std::span<double> values) {
  decode_rows_as(tensor, first, count, values);
}

std::string to_string(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (const std::int64_t extent : shape) {
    if (text.size() > 1) text += ", ";
    text += std::to_string(extent);
  }
  return text + "]";
}

} // namespace ressvd_llm
