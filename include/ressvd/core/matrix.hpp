// SPDX-License-Identifier: Apache-2.0
//
// Owning matrices: a column-major block in the memory of its space. Backends make them (allocate),
// so the memory can come from malloc, from cudaMallocAsync or from the engine's own pool.
#pragma once

#include <concepts>
#include <memory>
#include <type_traits>
#include <utility>

#include "ressvd/core/matrix_view.hpp"

namespace ressvd {
inline namespace v0 {

/// Owning, movable, not copyable: a copy costs memory, so it is an operation of the backend with a
/// name. Converts to block, so it goes wherever a kernel takes one.
template <class T, class Space = host_space>
class matrix {
 public:
  using value_type = T;
  using space = Space;

  matrix() = default;
  /// Takes over memory for rows × cols packed elements; the pointer's deleter releases it.
  matrix(std::shared_ptr<T[]> memory, index_t rows, index_t cols)
      : memory_(std::move(memory)), block_{memory_.get(), rows, cols, rows} {}

  matrix(matrix&& other) noexcept
      : memory_(std::move(other.memory_)), block_(std::exchange(other.block_, {})) {}
  matrix& operator=(matrix&& other) noexcept {
    memory_ = std::move(other.memory_);
    block_ = std::exchange(other.block_, {});
    return *this;
  }
  matrix(const matrix&) = delete;
  matrix& operator=(const matrix&) = delete;

  index_t rows() const { return block_.rows; }
  index_t cols() const { return block_.cols; }
  index_t size() const { return block_.size(); }
  bool empty() const { return block_.empty(); }
  T* data() { return block_.data; }
  const T* data() const { return block_.data; }

  operator block<T, Space>() { return block_; }
  operator block<const T, Space>() const { return block_; }
  block<T, Space> ref() { return block_; }
  block<const T, Space> ref() const { return block_; }
  matrix_view<T, Space> view() { return block_.view(); }
  matrix_view<const T, Space> view() const { return block<const T, Space>(block_).view(); }
  matrix_view<const T, Space> transposed() const { return view().transposed(); }

 private:
  std::shared_ptr<T[]> memory_; // shared_ptr only for its type-erased deleter
  block<T, Space> block_;
};

/// Row numbers in the memory of a space, made by a backend (indices) and shared among copies.
template <class Space = host_space>
struct index_list {
  std::shared_ptr<const index_t[]> data;
  index_t size = 0;
};

/// A view of what may only be read: the one form in which kernels and backends take a view, a block
/// or a matrix whose elements they do not change.
template <class U, class Space>
matrix_view<const std::remove_const_t<U>, Space> const_view(const matrix_view<U, Space>& a) {
  return a;
}
template <class U, class Space>
matrix_view<const std::remove_const_t<U>, Space> const_view(const block<U, Space>& a) {
  return a.view();
}
template <class U, class Space>
matrix_view<const U, Space> const_view(const matrix<U, Space>& a) {
  return a.view();
}

/// A view, block or matrix in this memory space, of any storage type.
template <class M, class Space = host_space>
concept readable_matrix = requires(const M& m) {
  requires std::same_as<typename decltype(const_view(m))::space, Space>;
};

/// The storage type of a readable matrix.
template <class M>
using element_of = typename decltype(const_view(std::declval<const M&>()))::value_type;

} // namespace v0
} // namespace ressvd
