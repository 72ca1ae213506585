// SPDX-License-Identifier: Apache-2.0
//
// The reference that suites compare with: matrices of doubles on the host and textbook operations
// on them, explicit inverses included. It shares nothing with the library.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "ressvd/core/types.hpp"

namespace support {

using ressvd::index_t;

/// rows × cols doubles, column-major, packed.
class dense {
 public:
  dense() = default;
  dense(index_t rows, index_t cols, double value = 0)
      : rows_(rows), cols_(cols), values_(static_cast<std::size_t>(rows * cols), value) {}

  index_t rows() const { return rows_; }
  index_t cols() const { return cols_; }
  double& operator()(index_t i, index_t j) { return values_[at(i, j)]; }
  double operator()(index_t i, index_t j) const { return values_[at(i, j)]; }
  double* data() { return values_.data(); }
  const double* data() const { return values_.data(); }

  friend bool operator==(const dense&, const dense&) = default;

 private:
  std::size_t at(index_t i, index_t j) const { return static_cast<std::size_t>(i + j * rows_); }

  index_t rows_ = 0;
  index_t cols_ = 0;
  std::vector<double> values_;
};

dense operator*(const dense& a, const dense& b);
dense operator+(const dense& a, const dense& b);
dense operator-(const dense& a, const dense& b);
dense operator*(double alpha, const dense& a);
dense transpose(const dense& a);
dense identity(index_t n);
dense diagonal_matrix(const std::vector<double>& values);
dense column(const std::vector<double>& values);
dense part(const dense& a, index_t row, index_t col, index_t rows, index_t cols);
dense left_cols(const dense& a, index_t count);
dense join_cols(const dense& a, const dense& b); ///< [a, b]
dense absolute(const dense& a);

double frobenius(const dense& a);
double squared_norm(const dense& a); ///< ‖a‖_F²
double spectral_norm(const dense& a);
double max_abs(const dense& a);
double trace(const dense& a);
bool all_finite(const dense& a);
double orthonormality_error(const dense& q); ///< ‖QᵀQ − I‖_F

struct svd_parts {
  dense u; ///< m × min(m, n)
  std::vector<double> s;
  dense v; ///< n × min(m, n)
};
svd_parts svd(const dense& a);

struct eigen_parts {
  std::vector<double> values; ///< ascending
  dense vectors;
};
eigen_parts eigh(const dense& a);

dense inverse(const dense& a);
dense pseudo_inverse(const dense& a); ///< singular values below max(m, n)·eps·σ₁ are zero
dense cholesky(const dense& a);       ///< lower triangular
dense best_of_rank(const dense& a, index_t rank);
double sum_of_squares_from(const std::vector<double>& values, index_t first); ///< Σ_{i≥first} v²

/// Random matrices; the same seed gives the same matrix.
dense random_normal(index_t rows, index_t cols, std::uint64_t seed);
dense random_orthonormal(index_t rows, index_t cols, std::uint64_t seed);
dense with_spectrum(index_t rows, index_t cols, const std::vector<double>& singular_values,
                    std::uint64_t seed);

std::vector<double> geometric_spectrum(index_t count, double condition); ///< 1 … 1/condition
std::vector<double> spiked_spectrum(index_t count, index_t spikes); ///< a few 100s, a slow tail

/// Activations, features × tokens, as layers of language models have them.
struct activation_kind {
  index_t outlier_channels = 0; ///< 100 times larger
  index_t dead_channels = 0;    ///< zero
  index_t copied_channels = 0;  ///< equal to another one
  double condition = 10;        ///< between the largest and the smallest direction of the rest
};
dense activations(index_t features, index_t tokens, std::uint64_t seed,
                  const activation_kind& kind = {});

} // namespace support
