// SPDX-License-Identifier: Apache-2.0
#include "compress/factored_layer.hpp"

#include <algorithm>
#include <cstddef>

namespace ressvd_llm {
namespace {

const char* name_of_path(ressvd::whitening_path path) {
  switch (path) {
    case ressvd::whitening_path::cholesky:
      return "cholesky";
    case ressvd::whitening_path::damped_cholesky:
      return "damped cholesky";
    case ressvd::whitening_path::eigenvalues:
      return "eigenvalues";
    case ressvd::whitening_path::qr:
      return "qr";
    case ressvd::whitening_path::power:
      return "power";
  }
  return "";
}

using stage = ressvd::residual_stage<std::vector<float>>;

const stage* stage_for(const ressvd::factored_state<float>& state, std::int64_t rank) {
  const auto found = std::ranges::find(state.stages, rank, &stage::rank);
  return found == state.stages.end() ? nullptr : &*found;
}

// The loss at a rank, less what a residual stage takes off.
loss_report loss_at(const std::vector<double>& losses, std::int64_t rank, double energy) {
  const double total = losses.front();
  const double lost = (std::max)(losses[static_cast<std::size_t>(rank)] - energy, 0.0);
  return {.absolute = lost, .relative = total > 0 ? lost / total : 0.0};
}

} // namespace

matrix_report report_of(const factored_module& m, const ressvd::rank_choice& choice,
                        const compress_options& options) {
  matrix_report report{m.module.prefix, m.module.out, m.module.in, std::nullopt};
  if (choice.dense) return report;
  const ressvd::factored_state<float>& state = m.state;
  const stage* second = stage_for(state, choice.rank);
  factors_report& factors = report.factors.emplace();
  factors.rank = choice.rank;
  factors.intermediate_rank = choice.rank;
  if (state.residual) {
    ressvd::residual_options plan = state.residual->options;
    plan.rank = choice.rank;
    factors.intermediate_rank = ressvd::intermediate_rank(m.module.out, m.module.in, plan);
  }
  if (!refits(options) && (!state.residual || second != nullptr)) {
    const double weight = second != nullptr ? second->weight_energy : 0;
    factors.weight_loss = loss_at(state.weight_losses, factors.intermediate_rank, weight);
    if (!state.activation_losses.empty()) {
      const double activation = second != nullptr ? second->activation_energy.value_or(0) : 0;
      factors.activation_loss =
          loss_at(state.activation_losses, factors.intermediate_rank, activation);
    }
  }
  if (state.whitening) {
    factors.whitening = whitening_summary{.path = name_of_path(state.whitening->path),
                                          .damping = state.whitening->damping,
                                          .relative_damping = state.whitening->relative_damping,
                                          .condition = state.whitening->condition};
  }
  factors.numerical_rank = state.svd.numerical_rank;
  factors.seconds = state.seconds;
  return report;
}

} // namespace ressvd_llm
