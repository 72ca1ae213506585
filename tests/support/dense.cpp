// SPDX-License-Identifier: Apache-2.0
#include "support/dense.hpp"

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <utility>

namespace support {
namespace {

using eigen_matrix = Eigen::MatrixXd;

Eigen::Map<const eigen_matrix> eigen(const dense& a) {
  return {a.data(), a.rows(), a.cols()};
}

template <class Expression>
dense from_eigen(const Expression& expression) {
  dense a(expression.rows(), expression.cols());
  Eigen::Map<eigen_matrix>(a.data(), a.rows(), a.cols()) = expression;
  return a;
}

template <class Vector>
std::vector<double> to_vector(const Vector& v) {
  return {v.data(), v.data() + v.size()};
}

/// Channels where the traits of `activation_kind` go: spread over the features, none twice.
std::vector<index_t> spread_channels(index_t features, std::uint64_t seed) {
  std::vector<index_t> channels(static_cast<std::size_t>(features));
  for (std::size_t i = 0; i < channels.size(); ++i)
    channels[i] = static_cast<index_t>(i);
  std::mt19937_64 random(seed);
  std::shuffle(channels.begin(), channels.end(), random);
  return channels;
}

} // namespace

dense operator*(const dense& a, const dense& b) {
  return from_eigen(eigen(a) * eigen(b));
}
dense operator+(const dense& a, const dense& b) {
  return from_eigen(eigen(a) + eigen(b));
}
dense operator-(const dense& a, const dense& b) {
  return from_eigen(eigen(a) - eigen(b));
}
dense operator*(double alpha, const dense& a) {
  return from_eigen(alpha * eigen(a));
}
dense transpose(const dense& a) {
  return from_eigen(eigen(a).transpose());
}
dense identity(index_t n) {
  return from_eigen(eigen_matrix::Identity(n, n));
}

dense diagonal_matrix(const std::vector<double>& values) {
  const auto n = static_cast<index_t>(values.size());
  dense d(n, n);
  for (index_t i = 0; i < n; ++i)
    d(i, i) = values[static_cast<std::size_t>(i)];
  return d;
}

dense column(const std::vector<double>& values) {
  dense c(static_cast<index_t>(values.size()), 1);
  std::copy(values.begin(), values.end(), c.data());
  return c;
}

dense part(const dense& a, index_t row, index_t col, index_t rows, index_t cols) {
  return from_eigen(eigen(a).block(row, col, rows, cols));
}
dense left_cols(const dense& a, index_t count) {
  return part(a, 0, 0, a.rows(), count);
}

dense join_cols(const dense& a, const dense& b) {
  eigen_matrix joined(a.rows(), a.cols() + b.cols());
  joined << eigen(a), eigen(b);
  return from_eigen(joined);
}

dense absolute(const dense& a) {
  return from_eigen(eigen(a).cwiseAbs());
}

double frobenius(const dense& a) {
  return eigen(a).norm();
}
double squared_norm(const dense& a) {
  return eigen(a).squaredNorm();
}
double spectral_norm(const dense& a) {
  return svd(a).s.front();
}
double max_abs(const dense& a) {
  return eigen(a).cwiseAbs().maxCoeff();
}
double trace(const dense& a) {
  return eigen(a).trace();
}

bool all_finite(const dense& a) {
  return std::all_of(a.data(), a.data() + a.rows() * a.cols(),
                     [](double value) { return std::isfinite(value); });
}

double orthonormality_error(const dense& q) {
  return frobenius(transpose(q) * q - identity(q.cols()));
}

// One-sided Jacobi: rotations of pairs of columns until all are orthogonal. Accurate to the last
// digits at any condition number, and quick to compile, unlike Eigen's BDCSVD.
svd_parts svd(const dense& a) {
  if (a.rows() < a.cols()) {
    svd_parts t = svd(transpose(a));
    return {std::move(t.v), std::move(t.s), std::move(t.u)};
  }
  const index_t n = a.cols();
  const double largest = max_abs(a);
  // A power of two, so that squares neither overflow nor vanish and no digit changes.
  const double unit = largest > 0 ? std::exp2(std::ilogb(largest)) : 1;
  eigen_matrix u = eigen(a) / unit;
  eigen_matrix v = eigen_matrix::Identity(n, n);
  bool rotated = true;
  for (int sweep = 0; rotated && sweep < 60; ++sweep) {
    rotated = false;
    for (index_t p = 0; p < n; ++p) {
      for (index_t q = p + 1; q < n; ++q) {
        const double pp = u.col(p).squaredNorm();
        const double qq = u.col(q).squaredNorm();
        const double pq = u.col(p).dot(u.col(q));
        if (!(std::abs(pq) > 1e-15 * std::sqrt(pp) * std::sqrt(qq))) continue;
        rotated = true;
        const double zeta = (qq - pp) / (2 * pq);
        const double t = std::copysign(1 / (std::abs(zeta) + std::hypot(1.0, zeta)), zeta);
        const double c = 1 / std::hypot(1.0, t);
        const Eigen::JacobiRotation<double> rotation(c, c * t);
        u.applyOnTheRight(p, q, rotation);
        v.applyOnTheRight(p, q, rotation);
      }
    }
  }
  std::vector<double> norms;
  std::vector<index_t> order;
  for (index_t j = 0; j < n; ++j) {
    norms.push_back(u.col(j).norm());
    order.push_back(j);
  }
  const auto norm = [&](index_t j) { return norms[static_cast<std::size_t>(j)]; };
  std::stable_sort(order.begin(), order.end(),
                   [&](index_t i, index_t j) { return norm(i) > norm(j); });
  eigen_matrix left = eigen_matrix::Zero(a.rows(), n);
  eigen_matrix right(n, n);
  svd_parts f;
  for (index_t k = 0; k < n; ++k) {
    const index_t j = order[static_cast<std::size_t>(k)];
    f.s.push_back(norm(j) * unit);
    right.col(k) = v.col(j);
    if (norm(j) > 0) left.col(k) = u.col(j) / norm(j);
  }
  // Columns that vanished get any orthonormal completion.
  const Eigen::HouseholderQR<eigen_matrix> qr(left);
  const eigen_matrix basis = qr.householderQ() * eigen_matrix::Identity(a.rows(), n);
  for (index_t k = 0; k < n; ++k) {
    if (f.s[static_cast<std::size_t>(k)] == 0) left.col(k) = basis.col(k);
  }
  f.u = from_eigen(left);
  f.v = from_eigen(right);
  return f;
}

eigen_parts eigh(const dense& a) {
  const Eigen::SelfAdjointEigenSolver<eigen_matrix> solver(eigen(a));
  return {to_vector(solver.eigenvalues()), from_eigen(solver.eigenvectors())};
}

dense inverse(const dense& a) {
  return from_eigen(eigen(a).fullPivLu().inverse());
}

dense pseudo_inverse(const dense& a) {
  const svd_parts f = svd(a);
  const double negligible = static_cast<double>(std::max(a.rows(), a.cols())) *
                            std::numeric_limits<double>::epsilon() * f.s.front();
  std::vector<double> reciprocals;
  for (const double s : f.s)
    reciprocals.push_back(s > negligible ? 1 / s : 0);
  return f.v * diagonal_matrix(reciprocals) * transpose(f.u);
}

dense cholesky(const dense& a) {
  return from_eigen(eigen_matrix(eigen(a).llt().matrixL()));
}

dense best_of_rank(const dense& a, index_t rank) {
  const svd_parts f = svd(a);
  std::vector<double> kept = f.s;
  std::fill(kept.begin() + rank, kept.end(), 0.0);
  return f.u * diagonal_matrix(kept) * transpose(f.v);
}

double sum_of_squares_from(const std::vector<double>& values, index_t first) {
  double sum = 0;
  for (auto i = static_cast<index_t>(values.size()); i-- > first;) {
    sum += values[static_cast<std::size_t>(i)] * values[static_cast<std::size_t>(i)];
  }
  return sum;
}

dense random_normal(index_t rows, index_t cols, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  dense a(rows, cols);
  std::generate_n(a.data(), rows * cols, [&] { return normal(random); });
  return a;
}

dense random_orthonormal(index_t rows, index_t cols, std::uint64_t seed) {
  const dense a = random_normal(rows, cols, seed);
  const Eigen::HouseholderQR<eigen_matrix> qr(eigen(a));
  return from_eigen(eigen_matrix(qr.householderQ() * eigen_matrix::Identity(rows, cols)));
}

dense with_spectrum(index_t rows, index_t cols, const std::vector<double>& singular_values,
                    std::uint64_t seed) {
  const auto k = static_cast<index_t>(singular_values.size());
  return random_orthonormal(rows, k, seed) * diagonal_matrix(singular_values) *
         transpose(random_orthonormal(cols, k, seed + 1000003));
}

std::vector<double> geometric_spectrum(index_t count, double condition) {
  std::vector<double> values;
  const double last = static_cast<double>(std::max<index_t>(count - 1, 1));
  for (index_t i = 0; i < count; ++i) {
    values.push_back(std::pow(condition, -static_cast<double>(i) / last));
  }
  return values;
}

std::vector<double> spiked_spectrum(index_t count, index_t spikes) {
  std::vector<double> values;
  for (index_t i = 0; i < count; ++i) {
    values.push_back(i < spikes ? 100.0 / static_cast<double>(i + 1)
                                : 1 / std::sqrt(static_cast<double>(i - spikes + 1)));
  }
  return values;
}

dense activations(index_t features, index_t tokens, std::uint64_t seed,
                  const activation_kind& kind) {
  dense x = with_spectrum(features, features, geometric_spectrum(features, kind.condition), seed) *
            random_normal(features, tokens, seed + 17);
  const std::vector<index_t> channels = spread_channels(features, seed + 23);
  auto channel = channels.begin();
  const auto scale = [&](index_t i, double factor) {
    for (index_t t = 0; t < tokens; ++t)
      x(i, t) *= factor;
  };
  for (index_t k = 0; k < kind.outlier_channels; ++k)
    scale(*channel++, 100);
  for (index_t k = 0; k < kind.dead_channels; ++k)
    scale(*channel++, 0);
  for (index_t k = 0; k < kind.copied_channels; ++k, ++channel) {
    for (index_t t = 0; t < tokens; ++t)
      x(*channel, t) = x(channels.back(), t);
  }
  return x;
}

} // namespace support
