// SPDX-License-Identifier: Apache-2.0
//
// Numbers and matrices made from the bytes of a fuzzer's input.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <span>

#include "ressvd/core.hpp"

namespace fuzz {

using ressvd::index_t;

/// Reads bytes, zeros after the end.
class input {
 public:
  input(const std::uint8_t* data, std::size_t size) : bytes_(data, size) {}

  std::uint8_t byte() {
    if (bytes_.empty()) return 0;
    const std::uint8_t first = bytes_.front();
    bytes_ = bytes_.subspan(1);
    return first;
  }

  template <class T>
  T bits() {
    std::uint64_t all = 0;
    for (std::size_t i = 0; i < sizeof(T); ++i)
      all |= std::uint64_t{byte()} << 8 * i;
    T value;
    std::memcpy(&value, &all, sizeof(T));
    return value;
  }

  /// Mostly a size of a small matrix; also powers of two with their neighbours, and any integer.
  index_t number() {
    const std::uint8_t kind = byte();
    if (kind < 208) return kind % 13;
    if (kind < 240) {
      const auto power = static_cast<index_t>(std::uint64_t{1} << (byte() % 64));
      return static_cast<index_t>(static_cast<std::uint64_t>(power) + (kind % 3) - 1);
    }
    return bits<index_t>();
  }

  /// Mostly a number in [0, 1.6]; also any double.
  double real() {
    const std::uint8_t kind = byte();
    return kind < 208 ? kind / 128.0 : bits<double>();
  }

 private:
  std::span<const std::uint8_t> bytes_;
};

/// A view as a careless caller would make it, with memory for exactly the matrix that it describes,
/// or for one element if it describes none.
template <class T>
class any_view {
 public:
  explicit any_view(input& in) {
    const std::uint8_t flags = in.byte();
    view_.order = flags & 1 ? ressvd::layout::row_major : ressvd::layout::col_major;
    view_.rows = in.number();
    view_.cols = in.number();
    const bool by_rows = view_.order == ressvd::layout::row_major;
    view_.ld = flags & 2 ? in.number() : (by_rows ? view_.cols : view_.rows);
    if (flags & 4) view_.ld = static_cast<index_t>(static_cast<std::uint64_t>(view_.ld) + 3);
    describe();
    const bool missing = (flags & 0xf0) == 0xf0;
    if (missing) valid_ = valid_ && view_.empty();
    if (!available()) return;
    const auto count = static_cast<std::size_t>(valid_ ? extent_ : 1);
    memory_ = std::make_unique<T[]>(count);
    const bool any_bits = flags & 8;
    for (std::size_t i = 0; i < count; ++i) {
      memory_[i] = any_bits ? in.template bits<T>()
                            : ressvd::store<T>(static_cast<std::int8_t>(in.byte()) / 16.0);
    }
    view_.data = missing ? nullptr : memory_.get();
  }

  /// Whether the numbers describe a matrix.
  bool valid() const { return valid_; }
  /// Whether there is memory for what the numbers describe.
  bool available() const { return !valid_ || extent_ <= 4096; }

  ressvd::matrix_view<T> view() const { return view_; }
  ressvd::block<T> block() const { return {view_.data, view_.rows, view_.cols, view_.ld}; }

 private:
  /// In 128 bits, where nothing overflows.
  void describe() {
    __extension__ typedef __int128 wide_int;
    const bool by_rows = view_.order == ressvd::layout::row_major;
    const wide_int lines = by_rows ? view_.rows : view_.cols;
    const wide_int packed = by_rows ? view_.cols : view_.rows;
    valid_ = lines >= 0 && packed >= 0 && view_.ld >= packed;
    if (!valid_ || lines == 0 || packed == 0) return;
    const wide_int extent = (lines - 1) * view_.ld + packed;
    valid_ = extent <= std::numeric_limits<std::ptrdiff_t>::max() / static_cast<index_t>(sizeof(T));
    if (valid_) extent_ = static_cast<index_t>(extent);
  }

  ressvd::matrix_view<T> view_;
  index_t extent_ = 0;
  bool valid_ = false;
  std::unique_ptr<T[]> memory_;
};

} // namespace fuzz
