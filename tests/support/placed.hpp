// SPDX-License-Identifier: Apache-2.0
//
// Matrices of doubles as a caller would hold them: in a backend's memory, in any storage type,
// layout and leading dimension. Every element that is not part of the matrix is NaN: a kernel that
// reads one spoils its result, and the tests find one that writes there.
#pragma once

#include <cstring>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "ressvd/core.hpp"
#include "support/dense.hpp"
#include "support/memory.hpp"

namespace support {

using ressvd::layout;

/// The matrix that is left when the elements are stored as U.
template <class U>
dense rounded(dense a) {
  for (index_t j = 0; j < a.cols(); ++j) {
    for (index_t i = 0; i < a.rows(); ++i) {
      a(i, j) = ressvd::load<double>(ressvd::store<U>(a(i, j)));
    }
  }
  return a;
}

template <class U, class B>
class placed {
 public:
  using space = typename B::space;

  /// The leading dimension is the packed one plus `padding`. guard: elements before the matrix and
  /// behind it; 7 align it to its element type only, 8 to 16 bytes at least.
  placed(B& be, const dense& a, layout order = layout::col_major, index_t padding = 0,
         index_t guard = 7)
      : guard_(guard),
        view_{nullptr, a.rows(), a.cols(),
              (order == layout::row_major ? a.cols() : a.rows()) + padding, order} {
    const index_t lines = order == layout::row_major ? a.rows() : a.cols();
    image_.assign(static_cast<std::size_t>(lines * view_.ld + 2 * guard_),
                  ressvd::store<U>(std::numeric_limits<double>::quiet_NaN()));
    for (index_t j = 0; j < a.cols(); ++j) {
      for (index_t i = 0; i < a.rows(); ++i)
        image_[at(i, j)] = ressvd::store<U>(a(i, j));
    }
    memory_ = place(be, image_);
    view_.data = memory_.get() + guard_;
  }

  ressvd::matrix_view<const U, space> view() const { return view_; }
  ressvd::matrix_view<U, space> target() { return view_; }
  /// Column-major matrices only.
  ressvd::block<const U, space> block() const {
    return {view_.data, view_.rows, view_.cols, view_.ld};
  }
  ressvd::block<U, space> block() { return {view_.data, view_.rows, view_.cols, view_.ld}; }

  /// What the matrix holds now.
  dense values(B& be) const {
    const std::vector<U> now = fetch_all(be);
    dense a(view_.rows, view_.cols);
    for (index_t j = 0; j < a.cols(); ++j) {
      for (index_t i = 0; i < a.rows(); ++i)
        a(i, j) = ressvd::load<double>(now[at(i, j)]);
    }
    return a;
  }

  /// Whether nothing was written, neither to the matrix nor around it.
  bool unchanged(B& be) const { return same_bits(fetch_all(be), image_); }

  /// Whether nothing was written around the matrix.
  bool surroundings_unchanged(B& be) const {
    std::vector<U> now = fetch_all(be);
    for (index_t j = 0; j < view_.cols; ++j) {
      for (index_t i = 0; i < view_.rows; ++i)
        now[at(i, j)] = image_[at(i, j)];
    }
    return same_bits(now, image_);
  }

 private:
  std::size_t at(index_t i, index_t j) const {
    const index_t offset = view_.order == layout::row_major ? i * view_.ld + j : i + j * view_.ld;
    return static_cast<std::size_t>(guard_ + offset);
  }
  std::vector<U> fetch_all(B& be) const {
    return fetch(be, std::as_const(memory_).get(), image_.size());
  }
  static bool same_bits(const std::vector<U>& a, const std::vector<U>& b) {
    return std::memcmp(a.data(), b.data(), a.size() * sizeof(U)) == 0;
  }

  index_t guard_;
  ressvd::matrix_view<U, space> view_;
  std::vector<U> image_;
  std::shared_ptr<U[]> memory_;
};

/// A block of the backend's memory as a matrix of doubles.
template <class B, class T>
dense values_of(B& be, ressvd::block<T, typename B::space> a) {
  dense out(a.rows, a.cols);
  if (a.empty()) return out;
  const auto stored = fetch(be, static_cast<const std::remove_const_t<T>*>(a.data),
                            static_cast<std::size_t>((a.cols - 1) * a.ld + a.rows));
  for (index_t j = 0; j < a.cols; ++j) {
    for (index_t i = 0; i < a.rows; ++i) {
      out(i, j) = static_cast<double>(stored[static_cast<std::size_t>(i + j * a.ld)]);
    }
  }
  return out;
}
template <class B, class T>
dense values_of(B& be, const ressvd::matrix<T, typename B::space>& a) {
  return values_of(be, a.ref());
}

} // namespace support
