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

loss_report loss_of(double lost, double total) {
  lost = (std::max)(lost, 0.0);
  return {.absolute = lost, .relative = total > 0 ? lost / total : 0.0};
}

} // namespace

const residual_stage* factored_matrix::stage_for(std::int64_t wanted) const {
  for (const residual_stage& s : residual_stages) {
    if (s.rank == wanted) return &s;
  }
  return nullptr;
}

matrix_report report_of(const factored_matrix& m, const ressvd::rank_choice& choice,
                        const compress_options& options) {
  matrix_report report{m.module.prefix, m.module.out, m.module.in, std::nullopt};
  if (choice.dense) return report;
  const residual_stage* stage = m.stage_for(choice.rank);
  const bool compensated = options.method == method::ressvd;
  factors_report& factors = report.factors.emplace();
  factors.rank = choice.rank;
  factors.intermediate_rank =
      stage != nullptr ? stage->intermediate_rank
      : compensated    ? ressvd::intermediate_rank(m.module.out, m.module.in,
                                                   {.rank = choice.rank, .beta = options.beta})
                       : choice.rank;
  const bool complete = !compensated || stage != nullptr;
  if (complete && !refits(options)) {
    const auto leading =
        static_cast<std::size_t>(stage != nullptr ? stage->intermediate_rank : choice.rank);
    double weight = stage != nullptr ? stage->weight_energy : 0;
    double activation = stage != nullptr ? stage->activation_energy : 0;
    for (std::size_t i = 0; i < leading; ++i) {
      weight += m.weight_energies[i];
      activation += m.activation_energies[i];
    }
    factors.weight_loss = loss_of(m.weight_total - weight, m.weight_total);
    factors.activation_loss = loss_of(m.activation_total - activation, m.activation_total);
  }
  factors.whitening = {.path = name_of_path(m.whitening.path),
                       .damping = m.whitening.damping,
                       .relative_damping = m.whitening.relative_damping,
                       .condition = m.whitening.condition};
  factors.numerical_rank = m.svd.numerical_rank;
  factors.seconds = m.seconds;
  return report;
}

} // namespace ressvd_llm
