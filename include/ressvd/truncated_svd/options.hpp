// SPDX-License-Identifier: Apache-2.0
//
// The options of the truncated SVD and its report: the algorithm, the tolerance, a callback that
// shows progress and may cancel.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "ressvd/core/progress.hpp"
#include "ressvd/core/types.hpp"

namespace ressvd {
inline namespace v0 {

enum class svd_algorithm : std::uint8_t {
  automatic, ///< by shape, rank, scalar and backend: see choose_algorithms
  exact,     ///< dense SVD of A in the backend's scalar; workspace at most 3mn + n² scalars
  gram, ///< eigendecomposition of AAᵀ or AᵀA in double; workspace 2mn + 2·min(m, n)² doubles and
        ///< the backend's for eigenvectors
  subspace, ///< Chebyshev-filtered subspace iteration in the backend's scalar, to svd_options'
            ///< tolerance; workspace 2mn + 2(m + n)·b + 3b² scalars and 3b² + 512b doubles for a
            ///< block of b = rank + max(rank/5, 8). Where b reaches min(m, n), gram runs instead
  deflated_gram, ///< as gram, but in the backend's scalar and without A's outliers, to the
                 ///< tolerance; workspace in scalars, and rank·max(m, n) more. Where rounding may
                 ///< cost more than the tolerance, gram runs instead
  projector      ///< a spectral projector from products in reduced precision (CUDA, float), to the
            ///< tolerance; workspace mn + 4·min(m, n)² + (3·min(m, n) + max(m, n))·b scalars for
            ///< a block of b = rank + max(0.08·rank, 8). Where the backend has no such products, b
            ///< reaches min(m, n) or the tolerance is not met, gram runs instead
};

struct svd_options {
  svd_algorithm algorithm = svd_algorithm::automatic;
  double tolerance = 1e-3; ///< deflated_gram, subspace, projector: excess of the loss at the
                           ///< largest rank, relative to the optimum
  std::uint64_t seed = 1;  ///< the same: of random blocks; equal seeds give equal results
  progress_callback progress = nullptr;
};

struct svd_report {
  svd_algorithm algorithm = svd_algorithm::exact; ///< what ran
  /// Singular values that stand out of the algorithm's rounding. Ranks above it are served (the
  /// basis is completed) and gain nothing.
  index_t numerical_rank = 0;
  index_t sweeps = 0;      ///< subspace: filters that were applied; projector: power steps
  double applications = 0; ///< subspace: products of AAᵀ with the whole block
  double excess_loss = 0;  ///< the same three: estimated excess of the loss, relative to
                           ///< the optimum; subspace: above the tolerance where it did not
                           ///< reach it
};

namespace detail {

/// What an algorithm returns beside the vectors.
struct svd_outcome {
  std::vector<double> singular_values = {}; ///< all min(m, p) of A, descending
  double energy = 0;                        ///< ‖A‖_F²
  svd_report report = {};
};

inline void report_progress(const svd_options& options, double done) {
  report_progress(options.progress, done, "a truncated SVD");
}

/// The same options, with a callback to which progress never falls, also where one attempt follows
/// another.
inline svd_options with_rising_progress(svd_options options) {
  if (options.progress) {
    options.progress = [tell = options.progress, shown = 0.0](double done) mutable {
      shown = (std::max)(shown, done);
      return tell(shown);
    };
  }
  return options;
}

/// How many of the descending values exceed this share of the first.
inline index_t count_above(const std::vector<double>& values, double share) {
  return std::count_if(values.begin(), values.end(),
                       [&](double v) { return v > share * values.front(); });
}

} // namespace detail
} // namespace v0
} // namespace ressvd
