// SPDX-License-Identifier: Apache-2.0
//
// The backend concept: what an algorithm may ask of the machine. A backend is a class template
// over the compute scalar, made of the plain members below; it holds no algorithm. Every kernel is
// written once over this concept.
//
// A backend object is a light handle on a context (scratch memory, threads or a stream, library
// handles). `B::rebind<U>` constructed from a `B` computes in U on the same context; an algorithm
// runs its delicate part in double that way. One context serves one thread at a time; how many
// threads a call runs on inside is the context's business (backend/cpu/host_context.hpp), never a
// compiler flag's.
//
// Conventions for all members, stated once:
//   - Operands are column-major blocks. Shapes must fit; kernels have checked the caller's, and
//     backends assume them.
//   - Outputs do not overlap inputs except where said.
//   - Members that return numbers to the host wait for the result; all others may return before
//     the work is done (on the CPU they never do).
//   - flops count a multiply and an add as two.
#pragma once

#include <concepts>
#include <cstdint>
#include <span>

#include "ressvd/core/matrix.hpp"
#include "ressvd/core/matrix_view.hpp"
#include "ressvd/core/types.hpp"

namespace ressvd {
inline namespace v0 {

namespace detail {

/// Members that exist for every storage type U.
template <class B, class U>
concept backend_reads = requires(B& be, block<typename B::scalar, typename B::space> out,
                                 block<const typename B::scalar, typename B::space> in,
                                 matrix_view<const U, typename B::space> source,
                                 matrix_view<U, typename B::space> target,
                                 matrix_view<const typename B::scalar, typename B::space> view,
                                 const index_list<typename B::space>& rows) {
  // out ← source / target ← in, converting the element type and the layout. O(mn) moves.
  be.copy(source, out);
  be.copy(in, target);
  // Row rows_i of target ← row i of view, likewise; no row twice.
  be.scatter_rows(view, rows, target);
  // max |source_ij|; NaN or infinity when any element is. Blocks.
  { be.max_abs(source) } -> std::same_as<double>;
};

/// Members that feed running sums of activations, for every storage type U.
template <class B, class U>
concept backend_accumulates = requires(B& be, block<typename B::scalar, typename B::space> sum,
                                       matrix_view<const U, typename B::space> x) {
  // sum += x·xᵀ for x: n × t, at least in the lower triangle of sum (n × n). Backends form products
  // of float, half and bfloat16 in float (at most 2048 terms at a time on the CPU) and add them to
  // sum in its own type. n²t flops where the backend uses the symmetry, else 2n²t.
  be.add_gram(x, sum);
  // sum += x·yᵀ for x: m × t, y: n × t, sum: m × n, with the same precisions. 2mnt flops.
  be.add_product(x, x, sum);
  // sum_i += Σ_t |x_it| for x: n × t, sum: n × 1.
  be.add_row_abs(x, sum);
};

} // namespace detail

/// The numbers of one step of Adam, see refinement/adamw.hpp.
struct adam_step {
  double gradient = 1;   ///< s, what the gradient is multiplied with
  double fresh1 = 0.1;   ///< 1 − β₁: what a gradient counts for in its running mean
  double fresh2 = 0.001; ///< 1 − β₂, likewise for its square
  double rate = 0;       ///< η, over the correction of the mean
  double root = 1;       ///< ρ, one over the root of the correction of the mean square
  double epsilon = 1e-8;
  double pull = 0; ///< share of the way to the centre
};

// clang-format off
template <class B>
concept backend =
    compute_scalar<typename B::scalar> && std::copy_constructible<B> &&
    std::constructible_from<B, const typename B::template rebind<float>&> &&
    std::constructible_from<B, const typename B::template rebind<double>&> &&
    detail::backend_reads<B, float> && detail::backend_accumulates<B, float> &&
    detail::backend_reads<B, double> && detail::backend_accumulates<B, double> &&
    detail::backend_reads<B, half> && detail::backend_accumulates<B, half> &&
    detail::backend_reads<B, bfloat16> && detail::backend_accumulates<B, bfloat16> &&
    requires(B& be, typename B::scalar alpha,
             block<typename B::scalar, typename B::space> c,
             block<const typename B::scalar, typename B::space> a,
             block<const typename B::scalar, host_space> host_in,
             block<typename B::scalar, host_space> host_out,
             std::span<double> values, std::span<index_t> order, index_t count, std::uint64_t seed, op o,
             side s) {
  // Opens a scratch frame; blocks from scratch live until it is destroyed.
  { be.frame() };
  // An m × n block of scratch, uninitialised.
  { be.scratch(count, count) } -> std::same_as<block<typename B::scalar, typename B::space>>;
  // An owning m × n matrix, uninitialised, independent of frames.
  { be.allocate(count, count) } -> std::same_as<matrix<typename B::scalar, typename B::space>>;

  // Copies between host and backend memory, packed or not. Both block.
  be.upload(host_in, c);
  be.download(a, host_out);
  // Indices, copied to the backend's memory. Blocks.
  { be.indices(std::span<const index_t>(order)) } -> std::same_as<index_list<typename B::space>>;

  be.fill(c, alpha);           // c_ij ← alpha
  be.scale(alpha, c);          // c ← alpha·c
  be.add(alpha, a, c);         // c ← c + alpha·a
  be.scale_rows(a, c);         // c ← diag(a)·c, a: m × 1
  be.scale_cols(c, a);         // c ← c·diag(a), a: n × 1
  be.shift_diagonal(c, alpha); // c_ii ← c_ii + alpha
  be.mirror_lower(c);          // c_ij ← c_ji for i < j
  be.random_normal(c, seed);   // independent N(0,1), a function of seed and shape alone
  // Element by element, with gradient g, running means m, v and a centre a (empty: 0), all apart:
  //   m ← m + fresh1·(s·g − m),   v ← v + fresh2·((s·g)² − v),
  //   c ← c − η·m/(ρ·√v + ε) − pull·(c − a)
  be.adam(adam_step{}, a, c, c, a, c);

  { be.dot(a, a) } -> std::same_as<double>; // Σ a_ij·b_ij, summed in double. Blocks.
  be.row_squared_norms(a, values);          // values_i ← Σ_j a_ij² in double. Blocks.
  be.diagonal(a, values);                   // values_i ← a_ii. Blocks.

  // c ← alpha·op(a)·op(b) + beta·c; beta = 0 does not read c. 2mnk flops.
  be.gemm(o, o, alpha, a, a, alpha, c);
  // c ← op(L)·a (side::left) or a·op(L) (side::right); L's lower triangle alone is read.
  // mn·(order of L) flops.
  be.trmm(s, o, a, a, c);
  // c ← op(L)⁻¹·c or c·op(L)⁻¹ by substitution, L as above.
  be.trsm(s, o, a, c);
  // Lower Cholesky factor of c in c's lower triangle; the strict upper one is neither read nor
  // written. Returns 0, or the order of the first leading minor that is not positive, c then
  // being unspecified. n³/3 flops. Blocks.
  { be.potrf(c) } -> std::same_as<index_t>;
  // c: m × n, m ≥ n, becomes Q with orthonormal columns (to working precision whatever the rank
  // of c); r: n × n upper triangular with zeros below, c = Q·r. Householder, 4mn² flops.
  be.thin_qr(c, c);
  // r: n × n upper triangular, zeros below, with rᵀr = cᵀc, for any m; c is destroyed.
  // Householder without forming Q, 2mn² flops.
  be.triangularize(c, c);
  // c: m × n, m ≥ n, becomes L, unit lower trapezoidal with |l_ij| ≤ 1 and zeros above its diagonal;
  // r: n × n upper triangular, zeros below. Row i of L·r is row order_i of c as it was; order: m.
  // A column that has no pivot leaves a unit vector in L. n²(m − n/3) flops. Blocks.
  be.lu(c, c, order);
  // Eigenvalues ascending in values, orthonormal eigenvectors in the columns of c, of the
  // symmetric matrix in c's lower triangle. 14/3·n³ flops by divide and conquer. Blocks.
  be.eigh(c, values);
  // Economy SVD of c: m × n (destroyed): singular values descending in values (min(m, n)), left
  // singular vectors in u: m × min(m, n). Blocks.
  be.svd(c, values, c);

  be.synchronize(); // waits until everything asked for so far is done

  // Optional; kernels use them where present:
  // be.leading_eigenvectors(c, values, q) as eigh, but with the eigenvectors of the q.cols largest
  // eigenvalues alone, ascending like them, in q.
  // be.reduced_gemm(o, o, alpha, a, a, beta, c) as gemm for operands that are not empty, but much
  // faster, with factors rounded to 11 bits or more.
  // be.low_rank_product(u, v, x, y, bias), views of storage types, does y ← u(v·x) + bias and returns
  // true, or returns false and does nothing; with a last argument &order, the index_list of a pivoted
  // pair, y ← P·[v·x; u(v·x)] + bias.
};
// clang-format on

/// The same machine, computing in double.
template <backend B>
using wide_backend = typename B::template rebind<double>;

template <backend B>
using block_of = block<typename B::scalar, typename B::space>;
template <backend B>
using const_block_of = block<const typename B::scalar, typename B::space>;
template <backend B>
using matrix_of = matrix<typename B::scalar, typename B::space>;

namespace detail {

/// Whether the backend has products in reduced precision.
template <backend B>
constexpr bool has_reduced_gemm = requires(B& be, block_of<B> c) {
  be.reduced_gemm(op::none, op::none, 1, c, c, 0, c);
};

} // namespace detail

} // namespace v0
} // namespace ressvd
