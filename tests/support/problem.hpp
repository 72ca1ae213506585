// SPDX-License-Identifier: Apache-2.0
//
// What most suites work on: a weight matrix, activations and their Gram, placed in the backend's
// memory, and the bounds on what rounding may do to a low-rank approximation of it.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "ressvd/algorithms.hpp"
#include "support/compare.hpp"
#include "support/dense.hpp"
#include "support/placed.hpp"

namespace support {

/// U, V and their product as doubles.
struct pair_values {
  dense u;
  dense v;
  dense product() const { return u * v; }
};

template <class B>
pair_values values_of(B& be, const ressvd::low_rank<typename B::scalar, typename B::space>& pair) {
  return {values_of(be, pair.u), values_of(be, pair.v)};
}

/// An owned pair of these factors.
template <class B>
ressvd::low_rank<typename B::scalar, typename B::space> make_pair(B& be, const dense& u,
                                                                  const dense& v) {
  using T = typename B::scalar;
  const placed<T, B> pu(be, u);
  const placed<T, B> pv(be, v);
  ressvd::low_rank<T, typename B::space> pair{be.allocate(u.rows(), u.cols()),
                                              be.allocate(v.rows(), v.cols())};
  be.copy(pu.view(), pair.u.ref());
  be.copy(pv.view(), pair.v.ref());
  be.synchronize();
  return pair;
}

/// Exactly symmetric, which a product need not be.
inline dense gram_of(const dense& x) {
  const dense g = x * transpose(x);
  return 0.5 * (g + transpose(g));
}

inline double mean_diagonal(const dense& g) {
  return trace(g) / static_cast<double>(g.rows());
}

/// G to the power p from its eigenvalues, which are known to be non-negative.
inline dense power_of(const dense& g, double p) {
  const eigen_parts parts = eigh(g);
  std::vector<double> values;
  for (const double v : parts.values)
    values.push_back(std::pow(std::max(v, 0.0), p));
  return parts.vectors * diagonal_matrix(values) * transpose(parts.vectors);
}

/// W (m × n), X (n × T) and G = X·Xᵀ. W is stored as U, G as double.
template <class B, class U = typename B::scalar>
struct problem {
  dense w;
  dense x;
  dense g;
  placed<U, B> placed_w;
  placed<double, B> placed_g;

  problem(B& be, const dense& weights, const dense& inputs)
      : w(rounded<U>(weights)),
        x(inputs),
        g(inputs * transpose(inputs)),
        placed_w(be, w, layout::row_major, 3),
        placed_g(be, g, layout::col_major, 2) {}
};

/// How far storing the factors in the backend's scalar may move U·V, in norm: every u_i·v_iᵀ moves
/// by eps of its size.
inline double storage_error(const pair_values& pair, double epsilon) {
  double sum = 0;
  for (index_t i = 0; i < pair.u.cols(); ++i) {
    sum += frobenius(part(pair.u, 0, i, pair.u.rows(), 1)) *
           frobenius(part(pair.v, i, 0, 1, pair.v.cols()));
  }
  return epsilon * sum;
}

/// Bound on ‖(Ŵ_computed − Ŵ)·F‖_F for the projection of W on a basis of r vectors: sums of m and n
/// terms, whose independent roundings add like square roots, and orthogonal transformations of W·F.
inline double projection_error(const dense& w, const dense& f, double epsilon) {
  const auto terms = static_cast<double>(w.rows() + w.cols());
  return 4 * std::sqrt(terms) * epsilon * frobenius(w) * spectral_norm(f) +
         2 *
             householder_tolerance(std::max(w.rows(), f.cols()), std::min(w.rows(), f.cols()),
                                   epsilon) *
             frobenius(w * f);
}

/// How far a loss may be from `exact` when the residual is known up to `error` in norm.
inline double loss_tolerance(double exact, double error) {
  return 2 * std::sqrt(exact) * error + error * error;
}

/// The energy of A that eigenvectors of A·Aᵀ, computed in double, may lose.
inline double gram_algorithm_loss(const dense& a, index_t rank) {
  const index_t k = std::min(a.rows(), a.cols());
  const double relative = householder_tolerance(k, k, std::numeric_limits<double>::epsilon());
  return 2 * static_cast<double>(rank) * relative * squared_norm(a);
}

/// How far the projection of W on the leading rank-r subspace of A may turn by rounding, in norm:
/// a backward error E of the SVD turns the subspace by at most 2‖E‖/(σ_r − σ_{r+1}) (Davis, Kahan).
inline double truncation_change(const dense& w, const dense& a, index_t rank, double epsilon) {
  const std::vector<double> sigma = svd(a).s;
  const auto r = static_cast<std::size_t>(rank);
  const double gap = r < sigma.size() ? sigma[r - 1] - sigma[r] : sigma[r - 1];
  const double relative =
      householder_tolerance(std::max(a.rows(), a.cols()), std::min(a.rows(), a.cols()), epsilon);
  return (2 * relative * frobenius(a) / gap + relative) * frobenius(w);
}

/// ‖(W − Ŵ)·F‖_F².
inline double loss_of(const dense& w, const dense& approximation, const dense& f) {
  return squared_norm((w - approximation) * f);
}

inline std::string name_of(ressvd::svd_algorithm algorithm) {
  switch (algorithm) {
    case ressvd::svd_algorithm::automatic:
      return "automatic";
    case ressvd::svd_algorithm::exact:
      return "exact";
    case ressvd::svd_algorithm::gram:
      return "gram";
    case ressvd::svd_algorithm::deflated_gram:
      return "deflated gram";
    case ressvd::svd_algorithm::subspace:
      return "subspace";
    case ressvd::svd_algorithm::projector:
      return "projector";
  }
  return "";
}

} // namespace support
