// SPDX-License-Identifier: Apache-2.0
//
// The CPU backend on BLAS and LAPACK through CBLAS and LAPACKE (OpenBLAS, MKL, the reference). Link
// ressvd::lapack.
//
// Threads: the products and decompositions run on the threads of the BLAS library, not on those of
// the context. Their number belongs to the process (openblas_set_num_threads, mkl_set_num_threads,
// OPENBLAS_NUM_THREADS), so a context that changed it would change it for every other user of the
// library: it is the engine's to set. The reference BLAS has one thread.
#pragma once

#include <cblas.h>
#include <lapacke.h>

#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "ressvd/backend/cpu/host.hpp"
#include "ressvd/backend/cpu/tridiagonal.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail::lapack {

/// A size as BLAS and LAPACK take it.
inline lapack_int size(index_t n) {
  require(n <= (std::numeric_limits<lapack_int>::max)(), "a dimension of ", n,
          " is too large for this LAPACK's integers");
  return static_cast<lapack_int>(n);
}

inline CBLAS_TRANSPOSE to_cblas(op o) {
  return o == op::none ? CblasNoTrans : CblasTrans;
}
inline CBLAS_SIDE to_cblas(side s) {
  return s == side::left ? CblasLeft : CblasRight;
}

/// The routines of one precision.
template <class T>
struct routines;

template <>
struct routines<float> {
  static constexpr auto gemm = &cblas_sgemm;
  static constexpr auto syrk = &cblas_ssyrk;
  static constexpr auto trmm = &cblas_strmm;
  static constexpr auto trsm = &cblas_strsm;
  static constexpr auto potrf = &LAPACKE_spotrf_work;
  static constexpr auto geqrf = &LAPACKE_sgeqrf;
  static constexpr auto orgqr = &LAPACKE_sorgqr;
  static constexpr auto syevd = &LAPACKE_ssyevd;
  static constexpr auto sytrd = &LAPACKE_ssytrd;
  static constexpr auto ormtr = &LAPACKE_sormtr;
  static constexpr auto gesdd = &LAPACKE_sgesdd;
  static constexpr auto gesvd = &LAPACKE_sgesvd;
};

template <>
struct routines<double> {
  static constexpr auto gemm = &cblas_dgemm;
  static constexpr auto syrk = &cblas_dsyrk;
  static constexpr auto trmm = &cblas_dtrmm;
  static constexpr auto trsm = &cblas_dtrsm;
  static constexpr auto potrf = &LAPACKE_dpotrf_work;
  static constexpr auto geqrf = &LAPACKE_dgeqrf;
  static constexpr auto orgqr = &LAPACKE_dorgqr;
  static constexpr auto syevd = &LAPACKE_dsyevd;
  static constexpr auto sytrd = &LAPACKE_dsytrd;
  static constexpr auto ormtr = &LAPACKE_dormtr;
  static constexpr auto gesdd = &LAPACKE_dgesdd;
  static constexpr auto gesvd = &LAPACKE_dgesvd;
};

template <class A>
void check(lapack_int info, const char* routine, const A& a) {
  require<backend_error>(info == 0, "LAPACK's ", routine, " returned ", info, " for a ", a.rows,
                         " x ", a.cols, " matrix");
}

} // namespace detail::lapack

template <compute_scalar T>
class lapack_backend : public host_backend<lapack_backend<T>, T> {
  using base = host_backend<lapack_backend<T>, T>;
  using routines = detail::lapack::routines<T>;

 public:
  template <compute_scalar U>
  using rebind = lapack_backend<U>;

  /// Owns a context that grows on demand.
  lapack_backend() = default;
  /// Computes on a given context, e.g. one with the engine's own buffer.
  explicit lapack_backend(std::shared_ptr<host_context> context) : base(std::move(context)) {}
  /// The same context in another precision.
  template <compute_scalar U>
  lapack_backend(const lapack_backend<U>& other) : base(other.context()) {}

  void gemm(op oa, op ob, T alpha, block<const T> a, block<const T> b, T beta, block<T> c) {
    using namespace detail::lapack;
    if (c.empty()) return;
    if (a.empty()) {
      if (beta == T{0}) return this->fill(c, T{0});
      return this->scale(beta, c);
    }
    routines::gemm(CblasColMajor, to_cblas(oa), to_cblas(ob), size(c.rows), size(c.cols),
                   size(oa == op::none ? a.cols : a.rows), alpha, a.data, size(a.ld), b.data,
                   size(b.ld), beta, c.data, size(c.ld));
  }

  template <readable_matrix M>
  void add_gram(const M& factor, block<T> sum) {
    const auto x = const_view(factor);
    if constexpr (std::is_same_v<element_of<M>, T>) {
      using namespace detail::lapack;
      if (x.empty()) return;
      const auto [a, o] = as_operand(x);
      routines::syrk(CblasColMajor, CblasLower, to_cblas(o), size(x.rows), size(x.cols), T{1},
                     a.data, size(a.ld), T{1}, sum.data, size(sum.ld));
    } else {
      base::add_gram(x, sum);
    }
  }

  void trmm(side s, op o, block<const T> l, block<const T> in, block<T> out) {
    this->copy(in.view(), out);
    triangular(routines::trmm, s, o, l, out);
  }
  void trsm(side s, op o, block<const T> l, block<T> c) { triangular(routines::trsm, s, o, l, c); }

  index_t potrf(block<T> c) {
    using namespace detail::lapack;
    if (c.empty()) return 0;
    const lapack_int info =
        routines::potrf(LAPACK_COL_MAJOR, 'L', size(c.rows), c.data, size(c.ld));
    // An infinite or undefined pivot passes LAPACK's test.
    const index_t factored = info == 0 ? c.rows : info - 1;
    for (index_t i = 0; i < factored; ++i) {
      if (!std::isfinite(c.data[i + i * c.ld])) return i + 1;
    }
    return info;
  }

  void thin_qr(block<T> c, block<T> r) {
    using namespace detail::lapack;
    const std::vector<T> tau = factor_qr(c, r);
    check(routines::orgqr(LAPACK_COL_MAJOR, size(c.rows), size(c.cols), size(c.cols), c.data,
                          size(c.ld), tau.data()),
          "orgqr", c);
  }
  void triangularize(block<T> c, block<T> r) { factor_qr(c, r); }

  void eigh(block<T> c, std::span<double> values) {
    using namespace detail::lapack;
    std::vector<T> w(static_cast<std::size_t>(c.rows));
    check(routines::syevd(LAPACK_COL_MAJOR, 'V', 'L', size(c.rows), c.data, size(c.ld), w.data()),
          "syevd", c);
    std::copy(w.begin(), w.end(), values.begin());
  }

  /// values: all eigenvalues, ascending, of the symmetric n × n matrix in c's lower triangle, which
  /// is destroyed. q: n × count, orthonormal eigenvectors of the count ≤ n largest, in the same
  /// order. LAPACK's reduction, and a divide and conquer that forms no others.
  void leading_eigenvectors(block<T> c, std::span<double> values, block<T> q) {
    using namespace detail::lapack;
    const auto n = static_cast<std::size_t>(c.rows);
    std::vector<T> diagonal(n);
    std::vector<T> beside(n);
    std::vector<T> tau(n);
    check(routines::sytrd(LAPACK_COL_MAJOR, 'L', size(c.rows), c.data, size(c.ld), diagonal.data(),
                          beside.data(), tau.data()),
          "sytrd", c);
    const std::vector<double> d(diagonal.begin(), diagonal.end());
    const std::vector<double> e(beside.begin(), beside.end() - 1);
    detail::require<backend_error>(detail::tridiagonal_eigenvectors(*this, d, e, values, q),
                                   "the eigenvalues of a ", c.rows, " x ", c.rows,
                                   " matrix did not converge");
    check(routines::ormtr(LAPACK_COL_MAJOR, 'L', 'L', 'N', size(q.rows), size(q.cols), c.data,
                          size(c.ld), tau.data(), q.data, size(q.ld)),
          "ormtr", q);
  }

  /// Divide and conquer; where it does not converge, QR iteration.
  void svd(block<T> c, std::span<double> values, block<T> u) {
    using namespace detail::lapack;
    const index_t k = (std::min)(c.rows, c.cols);
    auto f = this->frame();
    const auto kept = this->scratch(c.rows, c.cols);
    const auto vt = this->scratch(k, c.cols);
    this->copy(block<const T>(c).view(), kept);
    std::vector<T> sigma(static_cast<std::size_t>(k));
    if (routines::gesdd(LAPACK_COL_MAJOR, 'S', size(c.rows), size(c.cols), c.data, size(c.ld),
                        sigma.data(), u.data, size(u.ld), vt.data, size(vt.ld)) != 0) {
      std::vector<T> superdiagonal(static_cast<std::size_t>(k));
      check(routines::gesvd(LAPACK_COL_MAJOR, 'S', 'N', size(c.rows), size(c.cols), kept.data,
                            size(kept.ld), sigma.data(), u.data, size(u.ld), vt.data, size(vt.ld),
                            superdiagonal.data()),
            "gesvd", c);
    }
    std::copy(sigma.begin(), sigma.end(), values.begin());
  }

 private:
  template <class Routine>
  void triangular(Routine routine, side s, op o, block<const T> l, block<T> c) {
    using namespace detail::lapack;
    if (c.empty()) return;
    routine(CblasColMajor, to_cblas(s), CblasLower, to_cblas(o), CblasNonUnit, size(c.rows),
            size(c.cols), T{1}, l.data, size(l.ld), c.data, size(c.ld));
  }

  /// c ← Householder vectors, whose factors are returned; r ← the triangle, zeros around it.
  std::vector<T> factor_qr(block<T> c, block<T> r) {
    using namespace detail::lapack;
    const index_t k = (std::min)(c.rows, c.cols);
    std::vector<T> tau(static_cast<std::size_t>(k));
    check(routines::geqrf(LAPACK_COL_MAJOR, size(c.rows), size(c.cols), c.data, size(c.ld),
                          tau.data()),
          "geqrf", c);
    this->fill(r, T{0});
    for (index_t j = 0; j < c.cols; ++j) {
      const index_t count = (std::min)(j + 1, k);
      std::copy_n(c.data + j * c.ld, count, r.data + j * r.ld);
    }
    return tau;
  }
};

static_assert(backend<lapack_backend<float>> && backend<lapack_backend<double>>);

} // namespace v0
} // namespace ressvd
