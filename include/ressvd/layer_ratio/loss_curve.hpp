// SPDX-License-Identifier: Apache-2.0
//
// One matrix of a rank allocation as a curve: what each choice costs and loses.
//
// The low-rank choices, ranks q, 2q, …, highest, lie on a convex curve of loss over parameters,
// because the singular values descend. The dense choice is one more point, far to the right. The
// low-rank part of the lower convex hull of all of them reaches to a rank called the knee; from
// there the tangent goes straight to the dense point. The knee is where the next rank saves no more
// per parameter than the jump to dense does, c T(r) / (mn − r(m+n)) with T(r) = Σ_{i>r} σ²_i.
#pragma once

#include <algorithm>
#include <span>

#include "ressvd/layer_ratio/allocation_problem.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {

class loss_curve {
 public:
  /// `matrix` has passed check_matrix. Reads the spectrum from its end to the knee.
  explicit loss_curve(const allocation_matrix& matrix)
      : singular_values_{matrix.singular_values},
        step_{matrix.rank_multiple},
        rank_cost_{matrix.rows + matrix.cols},
        dense_{keep_dense(matrix.rows, matrix.cols)},
        dense_cost_{matrix.rows * matrix.cols},
        saving_per_energy_{matrix.sensitivity /
                           (static_cast<double>(step_) * static_cast<double>(rank_cost_))} {
    if (pinned_dense(matrix)) return;
    const index_t usable =
        (std::min)({matrix.max_rank, static_cast<index_t>(singular_values_.size()),
                    largest_saving_rank(matrix.rows, matrix.cols)});
    highest_ = usable / step_ * step_;
    if (has_factors()) find_knee(matrix);
  }

  index_t cost(const rank_choice& choice) const {
    return choice.dense ? dense_cost_ : choice.rank * rank_cost_;
  }

  /// The choice that minimises loss + price · cost, the cheapest of several.
  rank_choice choice_at(double price) const {
    if (!has_factors() || dense_saving_ > price) return dense_;
    index_t below = step_; // paid for at this price, or the lowest there is
    index_t above = knee_ + step_;
    while (above - below > step_) {
      const index_t middle = below + (above - below) / (2 * step_) * step_;
      (saving(middle) > price ? below : above) = middle;
    }
    return {.rank = below, .dense = false};
  }

  struct next_step {
    rank_choice to;
    double saving = 0; ///< loss per parameter; 0 where the step saves nothing or does not exist
  };

  /// The step after `from` when steps are taken in the order of what they save per parameter; with
  /// `without_dense` the ranks go on beyond the knee.
  next_step next(const rank_choice& from, bool without_dense) const {
    if (from.dense) return {};
    if (!without_dense && from.rank >= knee_) return {dense_, dense_saving_};
    const index_t rank = from.rank + step_;
    if (rank > highest_) return {};
    return {{.rank = rank, .dense = false}, saving(rank)};
  }

 private:
  bool has_factors() const { return highest_ > 0; }

  /// σ²_{r−q+1} + … + σ²_r, what the step up to rank r adds.
  double step_energy(index_t rank) const {
    double energy = 0;
    for (index_t i = rank - step_; i < rank; ++i) {
      const double s = singular_values_[static_cast<std::size_t>(i)];
      energy += s * s;
    }
    return energy;
  }

  /// What that step saves per parameter. Does not grow with r, in floating point as well.
  double saving(index_t rank) const { return step_energy(rank) * saving_per_energy_; }

  void find_knee(const allocation_matrix& matrix) {
    knee_ = highest_;
    double tail = truncated_energy(singular_values_, knee_, matrix.tail_energy); // T(knee)
    while (knee_ > step_) {
      const double energy = step_energy(knee_);
      const index_t jump = dense_cost_ - (knee_ - step_) * rank_cost_;
      // Stop where the step up to the knee saves more than the jump from below it would.
      if (energy * static_cast<double>(jump) >
          (tail + energy) * static_cast<double>(step_ * rank_cost_))
        break;
      tail += energy;
      knee_ -= step_;
    }
    dense_saving_ =
        matrix.sensitivity * tail / static_cast<double>(dense_cost_ - knee_ * rank_cost_);
  }

  std::span<const double> singular_values_;
  index_t step_; ///< q
  index_t rank_cost_;
  rank_choice dense_;
  index_t dense_cost_;
  double saving_per_energy_; ///< c / (q(m+n))
  index_t highest_ = 0;      ///< 0 where the matrix can only be dense
  index_t knee_ = 0;
  double dense_saving_ = 0; ///< of the jump from the knee, per parameter
};

} // namespace detail
} // namespace v0
} // namespace ressvd
