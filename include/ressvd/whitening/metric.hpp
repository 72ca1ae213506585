// SPDX-License-Identifier: Apache-2.0
//
// The metrics of the weighted problem  min ‖F_Lᵀ (W − Ŵ) F_R‖_F  over rank-r Ŵ.
//
// A metric matrix M (symmetric positive semidefinite) is given by any factor F with F·Fᵀ = M:
// nothing here needs more than products with F. Only the triangular kind may be read as a
// triangle; an eigenvector factor is dense, and the type keeps it away from triangular routines.
//
// Factors are double whatever the backend computes in: they come from squared data.
#pragma once

#include "ressvd/core/backend.hpp"
#include "ressvd/detail/scaling.hpp"

namespace ressvd {
inline namespace v0 {

enum class metric_kind : std::uint8_t {
  identity,   ///< M = I, no factor
  diagonal,   ///< F = diag(f), f: n × 1
  triangular, ///< F lower triangular, n × n; what is above the diagonal is never read
  dense       ///< F: n × p, any p ≥ 1
};

/// A factor in memory that the caller keeps alive.
template <class Space = host_space>
struct metric {
  metric_kind kind = metric_kind::identity;
  block<const double, Space> factor;

  static metric identity() { return {}; }
  static metric diagonal(block<const double, Space> f) { return {metric_kind::diagonal, f}; }
  static metric triangular(block<const double, Space> f) { return {metric_kind::triangular, f}; }
  static metric dense(block<const double, Space> f) { return {metric_kind::dense, f}; }

  bool is_identity() const { return kind == metric_kind::identity; }

  /// Columns of W·F for a W of n columns.
  index_t width(index_t n) const { return kind == metric_kind::dense ? factor.cols : n; }
};

namespace detail {

/// Refuses a metric that does not fit n channels.
template <class Space>
void check_metric(const metric<Space>& m, index_t n, const char* name) {
  if (m.is_identity()) return;
  check_nonempty(m.factor.view(), name);
  require(m.factor.rows == n, name, " has ", m.factor.rows, " rows, expected ", n);
  if (m.kind == metric_kind::diagonal) check_shape(m.factor, n, 1, name);
  if (m.kind == metric_kind::triangular) check_shape(m.factor, n, n, name);
}

/// out ← W·F. W: m × n, out: m × m.width(n).
template <backend B>
void weigh(B& be, const_block_of<B> w, const metric<typename B::space>& m, block_of<B> out) {
  using T = typename B::scalar;
  auto frame = be.frame();
  switch (m.kind) {
    case metric_kind::identity:
      be.copy(w.view(), out);
      break;
    case metric_kind::diagonal:
      be.copy(w.view(), out);
      be.scale_cols(out, in_scalar(be, m.factor));
      break;
    case metric_kind::triangular:
      be.trmm(side::right, op::none, in_scalar(be, m.factor), w, out);
      break;
    case metric_kind::dense:
      be.gemm(op::none, op::none, T{1}, w, in_scalar(be, m.factor), T{0}, out);
      break;
  }
}

/// out ← Fᵀ·W. W: m × n, out: m.width(m) × n.
template <backend B>
void weigh_left(B& be, const metric<typename B::space>& m, const_block_of<B> w, block_of<B> out) {
  using T = typename B::scalar;
  auto frame = be.frame();
  switch (m.kind) {
    case metric_kind::identity:
      be.copy(w.view(), out);
      break;
    case metric_kind::diagonal:
      be.copy(w.view(), out);
      be.scale_rows(in_scalar(be, m.factor), out);
      break;
    case metric_kind::triangular:
      be.trmm(side::left, op::transpose, in_scalar(be, m.factor), w, out);
      break;
    case metric_kind::dense:
      be.gemm(op::transpose, op::none, T{1}, in_scalar(be, m.factor), w, T{0}, out);
      break;
  }
}

} // namespace detail
} // namespace v0
} // namespace ressvd
