// SPDX-License-Identifier: Apache-2.0
//
// Eigenvalues and eigenvectors of a symmetric tridiagonal matrix by divide and conquer. T is torn
// into T₁ ⊕ T₂ + ρ·u·uᵀ, u nonzero where the halves meet. T_i = Q_i·D_i·Q_iᵀ makes that
// Q·(D + ρ·z·zᵀ)·Qᵀ, Q = Q₁ ⊕ Q₂, whose eigenvectors are Q times those of the inner matrix.
//
// Values and the first and last rows of every Q_i, which is all that z and the secular equation
// need, are in double whatever the scalar; the vectors and their products are in the scalar.
//
// Deflation: where ρ·|z_i|, or the element left beside the diagonal by a rotation of two columns
// with close d, is at most tol ≤ 4·eps·max|t_ij|, eps of the scalar, it becomes zero. This changes
// T by a matrix of norm at most about 2·√n·tol in a merge of order n, and by 3.4 times that over
// all levels; usually the change is much less, the size of the rounding errors of the products.
//   cost        in products, at most n³/3 flops before the last merge and n²·count in it, with
//               deflation often far less; O(n²) for values alone
//   workspace   allocated, in scalars: n² + max(n·count, n²/4), and n²/2 where count < n
//   source      Cuppen, Numer. Math. 36 (1981); Gu and Eisenstat, "A divide-and-conquer algorithm
//               for the symmetric tridiagonal eigenproblem", SIAM J. Matrix Anal. Appl. 16 (1995)
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numbers>
#include <span>
#include <utility>
#include <vector>

#include "ressvd/backend/cpu/host_values.hpp"
#include "ressvd/backend/cpu/secular_equation.hpp"
#include "ressvd/core/backend.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {

/// An implicit QR step with Wilkinson's shift on rows first to last of the tridiagonal (d, e),
/// which is unreduced there; its rotations go to the columns of z.
inline void qr_step(std::vector<double>& d, std::vector<double>& e, std::size_t first,
                    std::size_t last, block<double> z) {
  // The eigenvalue of the trailing 2 × 2 that is closer to its last entry.
  const double half = (d[last - 1] - d[last]) / 2;
  const double off = e[last - 1];
  const double shift = d[last] - off * (off / (half + std::copysign(std::hypot(half, off), half)));
  double x = d[first] - shift;
  double bulge = e[first];
  for (std::size_t k = first; k < last && bulge != 0; ++k) {
    const double r = std::hypot(x, bulge);
    const double c = x / r;
    const double s = -bulge / r;
    const double upper = s * d[k] + c * e[k];
    const double lower = s * e[k] + c * d[k + 1];
    d[k] = c * (c * d[k] - s * e[k]) - s * (c * e[k] - s * d[k + 1]);
    d[k + 1] = s * upper + c * lower;
    e[k] = c * upper - s * lower;
    if (k > first) e[k - 1] = r;
    x = e[k];
    bulge = 0;
    if (k + 1 < last) {
      bulge = -s * e[k + 1];
      e[k + 1] *= c;
    }
    double* left = z.data + static_cast<index_t>(k) * z.ld;
    double* right = left + z.ld;
    for (index_t i = 0; i < z.rows; ++i) {
      const double a = left[i];
      left[i] = c * a - s * right[i];
      right[i] = s * a + c * right[i];
    }
  }
}

/// d: n diagonal entries, e: n − 1 beside it, of magnitude at most about 1. d becomes the
/// eigenvalues in any order, z: m × n its product with the eigenvectors. False when some value did
/// not converge in 30·n steps.
inline bool tridiagonal_qr(std::vector<double>& d, std::vector<double>& e, block<double> z) {
  const auto negligible = [&](std::size_t i) {
    constexpr double eps = std::numeric_limits<double>::epsilon();
    return std::abs(e[i]) <= eps * (std::abs(d[i]) + std::abs(d[i + 1]) + eps);
  };
  std::size_t steps = 0;
  for (std::size_t last = e.size(); last > 0;) {
    if (negligible(last - 1)) {
      --last;
      continue;
    }
    std::size_t first = last - 1;
    while (first > 0 && !negligible(first - 1))
      --first;
    if (++steps > 30 * d.size()) return false;
    qr_step(d, e, first, last, z);
  }
  return true;
}

template <class B>
class divide_and_conquer {
  using T = typename B::scalar;

 public:
  /// The tridiagonal (d, e) with elements of magnitude at most 1.
  divide_and_conquer(B& be, std::vector<double> d, std::vector<double> e)
      : be_(be), d_(std::move(d)), e_(std::move(e)), pairs_(d_.size()) {}

  /// See tridiagonal_eigenvectors.
  bool solve(std::span<double> values, block<T> q) {
    const auto n = static_cast<index_t>(d_.size());
    matrix<T> halves;
    block<T> left = q;
    block<T> right = q;
    if (n > leaf && q.cols > 0) {
      const index_t half = n / 2;
      kept_ = be_.allocate(n, n);
      inner_ = be_.allocate((std::max)(n * q.cols, (n - half) * (n - half)), 1);
      if (q.cols < n) {
        halves = be_.allocate(n, n - half);
        left = halves.ref().part(0, 0, half, half);
        right = halves.ref().part(half, 0, n - half, n - half);
      }
    }
    if (!solve(0, n, left, right, q)) return false;
    for (index_t i = 0; i < n; ++i)
      values[at(i)] = pairs_[at(i)].value;
    sort_columns(q);
    return true;
  }

 private:
  static constexpr index_t leaf = 32;

  /// Which rows of a merge's columns are not zero. deflated ones may have all of them.
  enum reach : std::uint8_t { upper, both, lower, deflated };

  /// An eigenvalue, and what is known of its vector, which is a column of some half's block.
  struct eigenpair {
    double value = 0;
    double first = 0; ///< elements of the vector
    double last = 0;
    index_t column = 0;
    double z = 0;
    reach rows = upper;
  };
  struct rotation {
    index_t x, y; ///< columns: x ← c·x + s·y, y ← c·y − s·x
    double c, s;
  };

  static std::size_t at(index_t i) { return static_cast<std::size_t>(i); }
  static bool ascending(const eigenpair& a, const eigenpair& b) { return a.value < b.value; }

  /// Rows start to start + n. The pairs there are ascending on return, with the vectors of the last
  /// q.cols in q, in any order. Those of the halves go to left and right, or, where q holds all
  /// vectors, to its diagonal blocks.
  bool solve(index_t start, index_t n, block<T> left, block<T> right, block<T> q) {
    if (n <= leaf) return solve_leaf(start, n, q);
    const index_t half = n / 2;
    const index_t cut = start + half;
    const double beside = e_[at(cut - 1)];
    d_[at(cut - 1)] -= std::abs(beside);
    d_[at(cut)] -= std::abs(beside);
    if (q.cols == n) {
      left = q.part(0, 0, half, half);
      right = q.part(half, half, n - half, n - half);
    }
    if (!solve(start, half, left, left, left)) return false;
    if (!solve(cut, n - half, right, right, right)) return false;
    merge(start, n, beside, left, right, q);
    return true;
  }

  bool solve_leaf(index_t start, index_t n, block<T> q) {
    std::vector<double> d(d_.begin() + start, d_.begin() + start + n);
    const auto couplings = std::span(e_).subspan(at(start), at(n - 1)); // none for n = 1
    std::vector<double> e(couplings.begin(), couplings.end());
    // All rows of the identity, or its first and last.
    const index_t rows = q.cols > 0 ? n : 2;
    std::vector<double> vectors(at(rows * n));
    const block<double> z{vectors.data(), rows, n, rows};
    if (q.cols > 0) {
      for (index_t i = 0; i < n; ++i)
        z.data[i + i * rows] = 1;
    } else {
      z.data[0] = 1;
      z.data[1 + (n - 1) * rows] = 1;
    }
    if (!tridiagonal_qr(d, e, z)) return false;
    const auto pairs = std::span(pairs_).subspan(at(start), at(n));
    for (index_t i = 0; i < n; ++i)
      pairs[at(i)] = {d[at(i)], z.data[i * rows], z.data[rows - 1 + i * rows], i};
    std::sort(pairs.begin(), pairs.end(), ascending);
    for (index_t i = 0; i < q.cols; ++i) {
      auto& pair = pairs[at(n - q.cols + i)];
      const double* column = z.data + pair.column * rows;
      std::transform(column, column + n, q.data + i * q.ld,
                     [](double x) { return static_cast<T>(x); });
      pair.column = i;
    }
    return true;
  }

  /// The pairs of both halves become those of the whole, in q as solve() says.
  void merge(index_t start, index_t n, double beside, block<T> left, block<T> right, block<T> q) {
    const auto pairs = std::span(pairs_).subspan(at(start), at(n));
    couple(pairs, beside);
    secular_equation f{{}, {}, 2 * std::abs(beside)};
    const std::vector<rotation> rotations = deflate(pairs, f.rho);
    for (const auto& pair : pairs) {
      if (pair.rows == deflated) continue;
      f.d.push_back(pair.value);
      f.z.push_back(pair.z);
    }
    const std::vector<secular_root> roots = solve_secular(f);
    const std::vector<double> weights = exact_weights(f, roots);
    auto weight = weights.begin();
    for (auto& pair : pairs) {
      if (pair.rows != deflated) pair.z = *weight++;
    }

    // The zeros of Q are blocks in this order.
    std::vector<eigenpair> grouped(pairs.begin(), pairs.end());
    std::stable_sort(grouped.begin(), grouped.end(), [](const eigenpair& a, const eigenpair& b) {
      return a.rows != b.rows ? a.rows < b.rows : a.rows == deflated && a.value < b.value;
    });
    if (q.cols > 0) gather(grouped, rotations, left, right);

    const index_t k = f.size();
    for (index_t i = 0; i < n; ++i) {
      pairs[at(i)] = grouped[at(i)];
      pairs[at(i)].column = i;
      if (i < k) pairs[at(i)].value = roots[at(i)].origin + roots[at(i)].offset;
    }
    std::inplace_merge(pairs.begin(), pairs.begin() + k, pairs.end(), ascending);
    grouped.resize(at(k));
    form_vectors(pairs, grouped, roots, q);
  }

  /// z for both halves, whose rows meet in the element `beside`, and the pairs in ascending order.
  static void couple(std::span<eigenpair> pairs, double beside) {
    const auto n = static_cast<index_t>(pairs.size());
    const index_t half = n / 2;
    // u = (0 … 0 1 ±1 0 … 0) has norm √2.
    const double unit = std::numbers::sqrt2 / 2;
    for (index_t i = 0; i < half; ++i) {
      auto& pair = pairs[at(i)];
      pair.z = unit * pair.last;
      pair.last = 0;
      pair.rows = upper;
    }
    for (index_t i = half; i < n; ++i) {
      auto& pair = pairs[at(i)];
      pair.z = (beside < 0 ? -unit : unit) * pair.first;
      pair.first = 0;
      pair.rows = lower;
      pair.column += half;
    }
    std::inplace_merge(pairs.begin(), pairs.begin() + half, pairs.end(), ascending);
  }

  /// Marks the pairs that are eigenpairs of the whole up to the tolerance, after the rotations that
  /// make them so. What remains has distinct values and no negligible z.
  static std::vector<rotation> deflate(std::span<eigenpair> pairs, double rho) {
    constexpr double tolerance = 2 * static_cast<double>(std::numeric_limits<T>::epsilon());
    std::vector<rotation> rotations;
    eigenpair* previous = nullptr;
    for (auto& pair : pairs) {
      if (rho * std::abs(pair.z) <= tolerance) {
        pair.rows = deflated;
        continue;
      }
      if (previous) {
        auto& other = *previous;
        const double length = std::hypot(other.z, pair.z);
        const double c = pair.z / length;
        const double s = -other.z / length;
        if (std::abs((pair.value - other.value) * c * s) <= tolerance) {
          const auto turn = [&](double& x, double& y) {
            const double turned = c * x + s * y;
            y = c * y - s * x;
            x = turned;
          };
          turn(other.first, pair.first);
          turn(other.last, pair.last);
          const double value = c * c * other.value + s * s * pair.value;
          pair.value = s * s * other.value + c * c * pair.value;
          other.value = value;
          pair.z = length;
          if (pair.rows != other.rows) pair.rows = both;
          other.rows = deflated;
          rotations.push_back({other.column, pair.column, c, s});
        }
      }
      previous = &pair;
    }
    return rotations;
  }

  /// Q's columns in the order of the pairs, rotated, go to kept().
  void gather(const std::vector<eigenpair>& pairs, const std::vector<rotation>& rotations,
              block<T> left, block<T> right) {
    const auto n = static_cast<index_t>(pairs.size());
    const block<T> q = kept(n);
    std::vector<T*> columns(pairs.size());
    be_.fill(q, 0);
    for (index_t i = 0; i < n; ++i) {
      const index_t from = pairs[at(i)].column;
      T* to = q.data + i * n;
      columns[at(from)] = to;
      if (from < left.cols) {
        std::copy_n(left.data + from * left.ld, left.rows, to);
      } else {
        std::copy_n(right.data + (from - left.cols) * right.ld, right.rows, to + left.rows);
      }
    }
    for (const auto& turn : rotations) {
      T* x = columns[at(turn.x)];
      T* y = columns[at(turn.y)];
      const auto c = static_cast<T>(turn.c);
      const auto s = static_cast<T>(turn.s);
      for (index_t i = 0; i < n; ++i) {
        const T turned = c * x[i] + s * y[i];
        y[i] = c * y[i] - s * x[i];
        x[i] = turned;
      }
    }
  }

  /// The vectors of the last q.cols pairs: those of roots are products of Q with eigenvectors of
  /// the secular equation, whose poles are in the order of Q's columns; the others are Q's. All
  /// pairs get their first and last elements, unless this is the last merge.
  void form_vectors(std::span<eigenpair> pairs, const std::vector<eigenpair>& poles,
                    const std::vector<secular_root>& roots, block<T> q) {
    const auto n = static_cast<index_t>(pairs.size());
    const auto k = static_cast<index_t>(poles.size());
    const bool last_merge = pairs.size() == pairs_.size();
    std::array<index_t, 4> counts{};
    std::vector<double> d, z, first, last;
    for (const auto& pole : poles) {
      ++counts[pole.rows];
      d.push_back(pole.value);
      z.push_back(pole.z);
      first.push_back(pole.first);
      last.push_back(pole.last);
    }
    const index_t formed = std::count_if(pairs.end() - q.cols, pairs.end(),
                                         [&](const eigenpair& pair) { return pair.column < k; });
    const block<T> inner{inner_.data(), k, formed, k};
    index_t root_column = 0;
    index_t deflated_column = formed;
    std::vector<double> v(poles.size());
    for (index_t i = 0; i < n; ++i) {
      auto& pair = pairs[at(i)];
      const bool wanted = i >= n - q.cols;
      if (pair.column >= k) {
        if (!wanted) continue;
        std::copy_n(kept(n).data + pair.column * n, n, q.data + deflated_column * q.ld);
        pair.column = deflated_column++;
        continue;
      }
      if (last_merge && !wanted) continue;
      const auto [origin, offset] = roots[at(pair.column)];
      for (std::size_t j = 0; j < v.size(); ++j)
        v[j] = z[j] / ((d[j] - origin) - offset);
      const auto dot = [&](const std::vector<double>& x) {
        return sum_over(k, [&](index_t j) { return x[at(j)] * v[at(j)]; });
      };
      const double scale = 1 / std::sqrt(dot(v));
      if (!last_merge) {
        pair.first = scale * dot(first);
        pair.last = scale * dot(last);
      }
      if (!wanted) continue;
      T* column = inner.data + root_column * k;
      for (std::size_t j = 0; j < v.size(); ++j)
        column[j] = static_cast<T>(scale * v[j]);
      pair.column = root_column++;
    }
    if (formed == 0) return;
    const index_t half = n / 2;
    const index_t above = counts[upper] + counts[both];
    const index_t below = counts[both] + counts[lower];
    be_.gemm(op::none, op::none, T{1}, kept(n).part(0, 0, half, above), inner.top_rows(above), T{0},
             q.part(0, 0, half, formed));
    be_.gemm(op::none, op::none, T{1}, kept(n).part(half, counts[upper], n - half, below),
             inner.part(counts[upper], 0, below, formed), T{0}, q.part(half, 0, n - half, formed));
  }

  /// The last q.cols pairs' vectors into their order.
  void sort_columns(block<T> q) {
    const auto pairs = std::span(pairs_).last(at(q.cols));
    if (std::is_sorted(pairs.begin(), pairs.end(),
                       [](const eigenpair& a, const eigenpair& b) { return a.column < b.column; }))
      return;
    const block<T> unsorted = kept(q.rows).left_cols(q.cols);
    be_.copy(block<const T>(q).view(), unsorted);
    for (index_t i = 0; i < q.cols; ++i)
      std::copy_n(unsorted.data + pairs[at(i)].column * unsorted.ld, q.rows, q.data + i * q.ld);
  }

  block<T> kept(index_t n) { return {kept_.data(), n, n, n}; }

  B& be_;
  std::vector<double> d_;
  std::vector<double> e_;
  std::vector<eigenpair> pairs_;
  matrix<T> kept_;  ///< Q of a merge
  matrix<T> inner_; ///< its right factor
};

/// d: n ≥ 1 diagonal entries, e: n − 1 beside it. values: all n eigenvalues, ascending. q: n ×
/// count, 0 ≤ count ≤ n, becomes orthonormal eigenvectors of the `count` largest of them, in
/// ascending order. False when an element is not finite or the QR iteration on a leaf does not
/// converge.
template <class B>
bool tridiagonal_eigenvectors(B& be, std::vector<double> d, std::vector<double> e,
                              std::span<double> values, block<typename B::scalar> q) {
  double largest = 0;
  for (const auto* elements : {&d, &e}) {
    for (const double x : *elements) {
      if (!std::isfinite(x)) return false;
      largest = (std::max)(largest, std::abs(x));
    }
  }
  // Largest element in [1/2, 1).
  int exponent = 0;
  std::frexp(largest, &exponent);
  for (auto* elements : {&d, &e}) {
    for (double& x : *elements)
      x = std::ldexp(x, -exponent);
  }
  const std::size_t n = d.size();
  if (!divide_and_conquer<B>(be, std::move(d), std::move(e)).solve(values, q)) return false;
  for (double& x : values.first(n))
    x = std::ldexp(x, exponent);
  return true;
}

} // namespace detail
} // namespace v0
} // namespace ressvd
