// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "io/tensor.hpp"
#include "model/buffer.hpp"

namespace ressvd_llm {

// A read-only matrix (rows × cols, row-major): float32 values of its own, or a tensor of a mapped
// checkpoint whose rows are converted each time they are used. Copies share the values.
class weight_matrix {
 public:
  weight_matrix() = default;

  // Throws std::invalid_argument unless values.size() = rows·cols.
  weight_matrix(std::int64_t rows, std::int64_t cols, std::vector<float> values);

  // Over values that their owner may change while nothing reads them; size as above.
  weight_matrix(std::int64_t rows, std::int64_t cols,
                std::shared_ptr<const std::vector<float>> values);

  // A two-dimensional tensor; its memory must outlive the matrix and its copies.
  explicit weight_matrix(tensor_view mapped);

  std::int64_t rows() const { return rows_; }
  std::int64_t cols() const { return cols_; }
  bool empty() const { return rows_ == 0; }

  // count rows from `first` on: where they lie already as float32, else converted into scratch
  // (count·cols floats, needed only if !in_memory()).
  const float* read_rows(std::int64_t first, std::int64_t count, float* scratch) const;
  bool in_memory() const { return values_ != nullptr; }

  // The tensor, unless the values are in memory.
  const tensor_view* mapped() const { return in_memory() || empty() ? nullptr : &mapped_; }
  // Equal for matrices that share their values.
  const void* identity() const {
    return in_memory() ? static_cast<const void*>(values_->data()) : mapped_.data;
  }

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

// x += g·W for g (tokens × out), x (tokens × in): the gradient at a product's input from the one at
// its output. Cost and threads as above.
void multiply_add_back(const float* g, std::int64_t tokens, const weight_matrix& w, float* x);

// sum += gᵀ·x for g (tokens × out), x (tokens × in), sum (out × in): the gradient of a matrix from
// those at the outputs of its product. Cost and threads as above.
void add_outer_products(const float* g, std::int64_t out, const float* x, std::int64_t in,
                        std::int64_t tokens, float* sum);

// A linear layer y = Wx + b. W is dense (out × in), or factored:
//   a pair   W = U·V, U (out × rank) and V (rank × in)
//   pivoted  W = P·[Z; C·Z], Z (rank × in) and C (out − rank × rank): row i of [Z; C·Z] is row
//            order[i] of W
// A dense matrix may have a pair beside it, a correction: W = D + U·V.
struct linear {
  weight_matrix dense;
  weight_matrix u;
  weight_matrix v;
  weight_matrix c;
  weight_matrix z;
  std::vector<std::int32_t> order; // out, a permutation
  std::vector<float> bias;         // out, or empty

  bool pivoted() const { return !z.empty(); }
  bool factored() const { return dense.empty() && !empty(); }
  bool empty() const { return dense.empty() && u.empty() && z.empty(); }
  std::int64_t out() const;
  std::int64_t in() const;
  // 0 when dense; of the correction where there is one.
  std::int64_t rank() const { return pivoted() ? z.rows() : u.cols(); }
  // Elements of the matrices and the bias; the order does not count.
  std::int64_t parameters() const;

  // y = Wx + b for every token: x (tokens × in), y (tokens × out), row-major, apart from x. `inner`
  // keeps Vx or Zx of a factored matrix (tokens × rank), if given.
  void apply(const float* x, std::int64_t tokens, float* y, float_buffer* inner = nullptr) const;
  // y += Wx + b.
  void apply_add(const float* x, std::int64_t tokens, float* y,
                 float_buffer* inner = nullptr) const;

  // x += Wᵀg: the gradient at the input from the one at the output, g (tokens × out). `inner` gets
  // the gradient at Vx or Zx of a factored matrix (tokens × rank); without x it gets that alone.
  void apply_back_add(const float* g, std::int64_t tokens, float* x, float_buffer& inner) const;

  // Of a pivoted matrix: the values of g (tokens × out) at the rows Z and at the rows C·Z.
  void gather(const float* g, std::int64_t tokens, float* own, float* others) const;
};

// Throws std::invalid_argument when the parts do not fit each other or the bias, or when the order
// is no permutation.
linear make_linear(weight_matrix dense, std::vector<float> bias);
linear make_linear(weight_matrix u, weight_matrix v, std::vector<float> bias);
linear make_corrected_linear(const linear& dense, const linear& pair);
linear make_pivoted_linear(weight_matrix c, weight_matrix z, std::vector<std::int32_t> order,
                           std::vector<float> bias);

// Whether the values are 0 … size − 1 in some order.
bool is_permutation(std::span<const std::int32_t> order);

} // namespace ressvd_llm
