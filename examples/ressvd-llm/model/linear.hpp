// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "io/tensor.hpp"

namespace ressvd_llm {

// A read-only matrix (rows × cols, row-major): float32 values of its own, or a tensor of a mapped
// checkpoint whose rows are converted each time they are used. Copies share the values.
class weight_matrix {
 public:
  weight_matrix() = default;

  // Throws std::invalid_argument unless values.size() = rows·cols.
  weight_matrix(std::int64_t rows, std::int64_t cols, std::vector<float> values);

  // A two-dimensional tensor; its memory must outlive the matrix and its copies.
  explicit weight_matrix(tensor_view mapped);

  std::int64_t rows() const { return rows_; }
  std::int64_t cols() const { return cols_; }
  bool empty() const { return rows_ == 0; }

  // count rows from `first` on: where they lie already as float32, else converted into scratch
  // (count·cols floats, needed only if !in_memory()).
  const float* read_rows(std::int64_t first, std::int64_t count, float* scratch) const;
  bool in_memory() const { return values_ != nullptr; }

  // A copy of all values, row-major.
  std::vector<float> values() const;

 private:
  std::int64_t rows_ = 0;
  std::int64_t cols_ = 0;
  std::shared_ptr<const std::vector<float>> values_;
  tensor_view mapped_;
};

// y += x·Wᵀ for x (tokens × in), y (tokens × out), W (out × in); all row-major, y apart from x.
// 2·tokens·in·out flops, shared among threads.
void multiply_add(const float* x, std::int64_t tokens, const weight_matrix& w, float* y);

// A linear layer y = Wx + b, W dense (out × in) or the product of two factors U (out × rank) and
// V (rank × in).
struct linear {
  weight_matrix dense;
  weight_matrix u;
  weight_matrix v;
  std::vector<float> bias; // out, or empty

  bool factored() const { return dense.empty() && !u.empty(); }
  bool empty() const { return dense.empty() && u.empty(); }
  std::int64_t out() const { return factored() ? u.rows() : dense.rows(); }
  std::int64_t in() const { return factored() ? v.cols() : dense.cols(); }
  // 0 when dense.
  std::int64_t rank() const { return factored() ? u.cols() : 0; }
  // Elements of the matrices and the bias.
  std::int64_t parameters() const;

  // y = Wx + b for every token: x (tokens × in), y (tokens × out), row-major, apart from x.
  void apply(const float* x, std::int64_t tokens, float* y) const;
  // y += Wx + b.
  void apply_add(const float* x, std::int64_t tokens, float* y) const;
};

// Throws std::invalid_argument when the factors do not fit each other or the bias, or when W is
// both dense and factored.
linear make_linear(weight_matrix dense, std::vector<float> bias);
linear make_linear(weight_matrix u, weight_matrix v, std::vector<float> bias);

} // namespace ressvd_llm
