// SPDX-License-Identifier: Apache-2.0
//
// What a factored matrix is made of but for its weight and its backend: on the host, to be kept in
// a file or on another machine, with the losses at every rank.
//
//   errors      none; a rank that the state does not know gives no loss
#pragma once

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "ressvd/core/backend.hpp"
#include "ressvd/methods/method.hpp"

namespace ressvd {
inline namespace v0 {

/// The second stage of residual compensation at one rank.
template <class Matrix>
struct residual_stage {
  index_t rank = 0; ///< of both stages together
  index_t intermediate_rank = 0;
  Matrix q = {}; ///< U_R, m × (rank − intermediate_rank)
  Matrix p = {}; ///< V_R of a method with metrics on both sides; else empty: it is U_RᵀW
  double weight_energy = 0; ///< what the stage takes off the weight loss, ‖U_RᵀW‖² without p
  std::optional<double> activation_energy = std::nullopt; ///< off the activation loss, where known
};

namespace detail {

/// What `losses`, the curve of a first stage, says at `leading` when a second one takes `energy`
/// off.
inline loss loss_left(const std::vector<double>& losses, index_t leading, double energy) {
  const double lost = (std::max)(losses[static_cast<std::size_t>(leading)] - energy, 0.0);
  return {lost, losses.front() > 0 ? lost / losses.front() : 0};
}

/// Σ_{i>rank} σ_i².
inline loss truncation_loss(const std::vector<double>& singular_values, index_t rank) {
  double lost = 0;
  double total = 0;
  for (auto i = static_cast<index_t>(singular_values.size()); i-- > 0;) {
    const double s = singular_values[static_cast<std::size_t>(i)];
    total += s * s;
    if (i >= rank) lost = total;
  }
  return {lost, total > 0 ? lost / total : 0};
}

/// The stage of a rank among those that were prepared, or null.
template <class Stages>
auto find_stage(const Stages& stages, index_t rank) -> decltype(stages.data()) {
  const auto found =
      std::ranges::find_if(stages, [&](const auto& stage) { return stage.rank == rank; });
  return found == stages.end() ? nullptr : &*found;
}

/// Both losses at a rank, from the curves of the first stage and the rank's second one, or null.
template <class Stage>
loss weight_loss_of(const std::vector<double>& losses, index_t rank, const Stage* stage) {
  return stage ? loss_left(losses, stage->intermediate_rank, stage->weight_energy)
               : loss_left(losses, rank, 0);
}
template <class Stage>
std::optional<loss> activation_loss_of(const std::vector<double>& losses, index_t rank,
                                       const Stage* stage) {
  if (losses.empty() || (stage && !stage->activation_energy)) return std::nullopt;
  return stage ? loss_left(losses, stage->intermediate_rank, *stage->activation_energy)
               : loss_left(losses, rank, 0);
}

} // namespace detail

/// A factored matrix on the host, to be kept in a file or on another machine. Matrices are
/// column-major and packed.
template <compute_scalar T>
struct factored_state {
  index_t rows = 0;
  index_t cols = 0;
  index_t rank = 0; ///< R
  projection acts = projection::left;
  std::vector<T> q; ///< left: U, m × R. right: Vᵀ, n × R. both: U, m × R
  std::vector<T> p; ///< both: V, R × n. Else empty: it follows from W
  std::vector<double> singular_values;
  std::vector<double> weight_losses;     ///< at ranks 0 … R
  std::vector<double> activation_losses; ///< the same, or empty
  std::vector<residual_stage<std::vector<T>>> stages;
  std::optional<residual_plan> residual;
  std::optional<whitening_report> whitening;
  svd_report svd;
  double seconds = 0;

  /// As factored_matrix's; nothing for a rank whose residual stage was not prepared.
  std::optional<loss> weight_loss(const rank_choice& choice) const {
    if (choice.dense) return loss{};
    const auto* stage = detail::find_stage(stages, choice.rank);
    if (residual && stage == nullptr) return std::nullopt;
    return detail::weight_loss_of(weight_losses, choice.rank, stage);
  }
  std::optional<loss> activation_loss(const rank_choice& choice) const {
    if (choice.dense && !activation_losses.empty()) return loss{};
    const auto* stage = detail::find_stage(stages, choice.rank);
    if (choice.dense || (residual && stage == nullptr)) return std::nullopt;
    return detail::activation_loss_of(activation_losses, choice.rank, stage);
  }
  std::optional<loss> truncation_loss(const rank_choice& choice) const {
    if (choice.dense) return loss{};
    if (residual) return std::nullopt;
    return detail::truncation_loss(singular_values, choice.rank);
  }
};

} // namespace v0
} // namespace ressvd
