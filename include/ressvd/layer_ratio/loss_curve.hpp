// SPDX-License-Identifier: Apache-2.0
//
// One matrix of a rank allocation as a curve: what each choice costs and loses.
//
// The choices are the ranks q, 2q, …, highest, and dense, far to the right. What matters of them is
// their lower convex hull, whose vertices from left to right are ranks and then dense; the last of
// the ranks is called the knee.
//   pairs    The ranks lie on a convex curve, because the singular values descend. All of them up
//            to the knee are vertices, and from there the tangent goes straight to dense: the next
//            rank saves no more per parameter than the jump to dense does,
//            c T(r) / (mn − r(m+n)) with T(r) = Σ_{i>r} σ²_i.
//   pivoted  A rank costs m+n−2r+1 numbers more than the one before, ever less, so it may save
//            more per parameter. Any of the ranks can be a vertex; a list holds those that are.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "ressvd/layer_ratio/allocation_problem.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {

class loss_curve {
 public:
  /// `matrix` has passed check_matrix. Reads the spectrum from its end, that of a pair to the knee.
  explicit loss_curve(const allocation_matrix& matrix)
      : singular_values_{matrix.singular_values},
        rows_{matrix.rows},
        cols_{matrix.cols},
        form_{matrix.form},
        step_{matrix.rank_multiple},
        sensitivity_{matrix.sensitivity},
        dense_{keep_dense(rows_, cols_)},
        saving_per_energy_{sensitivity_ /
                           (static_cast<double>(step_) * static_cast<double>(rows_ + cols_))} {
    if (pinned_dense(matrix)) return;
    const index_t usable =
        (std::min)({matrix.max_rank, static_cast<index_t>(singular_values_.size()),
                    largest_saving_rank(rows_, cols_, form_)});
    highest_ = usable / step_ * step_;
    if (has_factors()) find_hull(matrix.tail_energy);
  }

  index_t cost(const rank_choice& choice) const {
    return choice.dense ? rows_ * cols_ : cost(choice.rank);
  }

  /// The choice that minimises loss + price · cost, the cheapest of several: a vertex.
  rank_choice choice_at(double price) const {
    if (!has_factors() || dense_saving_ > price) return dense_;
    index_t below = 0; // paid for at this price, or the lowest there is
    index_t above = ranks_on_hull();
    while (above - below > 1) {
      const index_t middle = below + (above - below) / 2;
      (saving_to(middle) > price ? below : above) = middle;
    }
    return {.rank = rank_at(below), .dense = false};
  }

  struct step {
    rank_choice to;
    double saving = 0; ///< loss per parameter; 0 where the step saves nothing or does not exist
  };

  /// The step from one vertex to the next. No choice right of `from` saves more per parameter.
  step next_vertex(const rank_choice& from) const {
    if (from.dense) return {};
    const index_t next = vertex_after(from.rank);
    if (next == ranks_on_hull()) return {dense_, dense_saving_};
    return {{.rank = rank_at(next), .dense = false}, saving_to(next)};
  }

  /// Of all higher ranks for at most `left` more parameters the one that saves the most per
  /// parameter, the nearest of several.
  step next_within(const rank_choice& from, index_t left) const {
    step best;
    double energy = 0;
    for (index_t rank = from.rank + step_; rank <= highest_; rank += step_) {
      const index_t parameters = cost(rank) - cost(from.rank);
      if (parameters > left) break;
      if (form_ == factored_form::pair) return {{.rank = rank, .dense = false}, saving(rank)};
      energy += step_energy(rank);
      const double saved = sensitivity_ * energy / static_cast<double>(parameters);
      if (saved > best.saving) best = {{.rank = rank, .dense = false}, saved};
    }
    return best;
  }

 private:
  /// A line of the hull, from a rank to the vertex right of it.
  struct segment {
    index_t from = 0;
    double energy = 0; ///< what it gains
    index_t parameters = 0;
  };

  struct vertex {
    index_t rank = 0;
    double saving = 0; ///< of the segment that leads here, per parameter
  };

  bool has_factors() const { return highest_ > 0; }

  index_t cost(index_t rank) const { return factor_parameters(rows_, cols_, rank, form_); }

  /// σ²_{r−q+1} + … + σ²_r, what the step up to rank r adds.
  double step_energy(index_t rank) const {
    double energy = 0;
    for (index_t i = rank - step_; i < rank; ++i) {
      const double s = singular_values_[static_cast<std::size_t>(i)];
      energy += s * s;
    }
    return energy;
  }

  /// What that step saves per parameter in a pair. Does not grow with r, in floating point as well.
  double saving(index_t rank) const { return step_energy(rank) * saving_per_energy_; }

  // The vertices that are ranks, numbered from 0.
  index_t ranks_on_hull() const {
    return form_ == factored_form::pair ? knee_ / step_ : static_cast<index_t>(vertices_.size());
  }
  index_t rank_at(index_t i) const {
    return form_ == factored_form::pair ? (i + 1) * step_
                                        : vertices_[static_cast<std::size_t>(i)].rank;
  }
  double saving_to(index_t i) const {
    return form_ == factored_form::pair ? saving(rank_at(i))
                                        : vertices_[static_cast<std::size_t>(i)].saving;
  }
  index_t vertex_after(index_t rank) const {
    if (form_ == factored_form::pair) return rank / step_;
    return std::ranges::upper_bound(vertices_, rank, {}, &vertex::rank) - vertices_.begin();
  }

  /// Puts the steps of rank before the jump to dense, from the last to the first, and joins each
  /// with what follows until what is saved per parameter falls from segment to segment.
  void find_hull(double tail_energy) {
    segment first{.from = highest_,
                  .energy = truncated_energy(singular_values_, highest_, tail_energy),
                  .parameters = rows_ * cols_ - cost(highest_)};
    std::vector<segment> hull; // those after `first`, from right to left
    for (index_t rank = highest_; rank > step_; rank -= step_) {
      const segment added{.from = rank - step_,
                          .energy = step_energy(rank),
                          .parameters = cost(rank) - cost(rank - step_)};
      if (saves_more(added, first)) {
        if (form_ == factored_form::pair) break; // so do all steps before
        hull.push_back(first);
        first = added;
        continue;
      }
      first = joined(added, first);
      for (; !hull.empty() && !saves_more(first, hull.back()); hull.pop_back())
        first = joined(first, hull.back());
    }
    hull.push_back(first);
    knee_ = hull.front().from;
    dense_saving_ = saving(hull.front());
    if (form_ == factored_form::pair) return;

    vertices_.reserve(hull.size());
    vertices_.push_back({.rank = step_}); // no segment leads to the first
    for (std::size_t i = hull.size() - 1; i > 0; --i)
      vertices_.push_back({.rank = hull[i - 1].from, .saving = saving(hull[i])});
    // Slopes that differ by rounding may be out of order; choice_at relies on it.
    double least = dense_saving_;
    for (std::size_t i = vertices_.size() - 1; i > 0; --i)
      least = vertices_[i].saving = (std::max)(least, vertices_[i].saving);
  }

  /// Whether a segment saves more per parameter than it does together with the next one.
  static bool saves_more(const segment& left, const segment& right) {
    return left.energy * static_cast<double>(left.parameters + right.parameters) >
           (left.energy + right.energy) * static_cast<double>(left.parameters);
  }

  static segment joined(const segment& left, const segment& right) {
    return {.from = left.from,
            .energy = left.energy + right.energy,
            .parameters = left.parameters + right.parameters};
  }

  double saving(const segment& line) const {
    return sensitivity_ * line.energy / static_cast<double>(line.parameters);
  }

  std::span<const double> singular_values_;
  index_t rows_;
  index_t cols_;
  factored_form form_;
  index_t step_; ///< q
  double sensitivity_;
  rank_choice dense_;
  double saving_per_energy_; ///< c / (q(m+n)), of pairs
  index_t highest_ = 0;      ///< 0 where the matrix can only be dense
  index_t knee_ = 0;
  double dense_saving_ = 0;      ///< of the jump from the knee, per parameter
  std::vector<vertex> vertices_; ///< the ranks on the hull of a pivoted pair, ascending
};

} // namespace detail
} // namespace v0
} // namespace ressvd
