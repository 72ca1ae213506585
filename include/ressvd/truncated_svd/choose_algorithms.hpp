// SPDX-License-Identifier: Apache-2.0
//
// The algorithms that a truncated SVD tries, in their order: the fastest first, and another that
// never declines behind one that may.
//
// A backend in double gets the digits of double. The choice in float goes by measured times
// (docs/performance.md, bench/crossover.cpp) and by the shorter side of the matrix:
//   below 512     gram
//   small ranks   subspace: up to 15 % of the shorter side, or 50 % where the backend has no
//                 routine for some of the eigenvectors; half of that where the other side is twice
//                 as long, as only the forming of a Gram grows with the longer side
//   up to 75 %    deflated_gram, where the backend has that routine
//   above         gram: the loss may be little more than rounding
// A device whose arithmetic in double is at least 1/8 as fast as in float takes gram: there an
// eigenproblem in double takes hardly longer than one in float, and subspace was slower at every
// size measured on spectra like those of layers (docs/cuda.md). Where its products in reduced
// precision are fast as well, projector comes before it from a shorter side of 2048 on, up to 60 %
// of it. All devices are well above that share (1/2, 1/3) or well below (1/24 to 1/64).
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "ressvd/core/backend.hpp"
#include "ressvd/truncated_svd/eigenpairs.hpp"
#include "ressvd/truncated_svd/options.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {

/// Whether the backend computes on a device of fast double precision, and knows it.
template <backend B>
bool doubles_are_fast(const B& be) {
  if constexpr (requires { be.double_speed(); }) return be.double_speed() >= 0.125;
  return false;
}

/// Whether the backend computes on a device of fast products in reduced precision.
template <backend B>
bool reduced_products_are_fast(const B& be) {
  if constexpr (has_reduced_gemm<B> && requires { be.reduced_is_fast(); })
    return be.reduced_is_fast();
  return false;
}

/// The fastest algorithm that keeps the digits of the backend's scalar.
template <backend B>
svd_algorithm fastest_algorithm(const B& be, index_t shorter, index_t longer, index_t rank) {
  if constexpr (std::is_same_v<typename B::scalar, double>) return svd_algorithm::exact;
  if (shorter < 512) return svd_algorithm::gram;
  if (doubles_are_fast(be)) {
    const bool by_products = shorter >= 2048 && 5 * rank <= 3 * shorter;
    return by_products && reduced_products_are_fast(be) ? svd_algorithm::projector
                                                        : svd_algorithm::gram;
  }
  constexpr bool partial = has_leading_eigenvectors<B>;
  const double share = (partial ? 0.15 : 0.5) * (longer >= 2 * shorter ? 0.5 : 1.0);
  if (static_cast<double>(rank) <= share * static_cast<double>(shorter)) {
    return svd_algorithm::subspace;
  }
  return partial && 4 * rank <= 3 * shorter ? svd_algorithm::deflated_gram : svd_algorithm::gram;
}

} // namespace detail

/// The algorithms to try for the leading `rank` singular vectors of a rows × cols matrix, first to
/// last, when `asked` is asked for. All but the last may decline; the last one never does.
template <backend B>
std::vector<svd_algorithm> choose_algorithms(const B& be, svd_algorithm asked, index_t rows,
                                             index_t cols, index_t rank) {
  const svd_algorithm first =
      asked != svd_algorithm::automatic
          ? asked
          : detail::fastest_algorithm(be, (std::min)(rows, cols), (std::max)(rows, cols), rank);
  if (first == svd_algorithm::exact || first == svd_algorithm::gram) return {first};
  return {first, svd_algorithm::gram};
}

} // namespace v0
} // namespace ressvd
