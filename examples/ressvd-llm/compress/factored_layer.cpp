// SPDX-License-Identifier: Apache-2.0
#include "compress/factored_layer.hpp"

#include <optional>

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
    case ressvd::whitening_path::plain:
      return "plain";
    case ressvd::whitening_path::power:
      return "power";
  }
  return "";
}

std::optional<loss_report> report_of(const std::optional<ressvd::loss>& loss) {
  if (!loss) return std::nullopt;
  return loss_report{.absolute = loss->absolute, .relative = loss->relative};
}

} // namespace

matrix_report report_of(const factored_module& m, const ressvd::rank_choice& choice,
                        const compress_options& options) {
  matrix_report report{m.module.prefix, m.module.out, m.module.in, std::nullopt};
  if (choice.dense) return report;
  const ressvd::factored_state<float>& state = m.state;
  factors_report& factors = report.factors.emplace();
  factors.rank = choice.rank;
  factors.intermediate_rank = choice.rank;
  if (state.residual) {
    ressvd::residual_options plan = state.residual->options;
    plan.rank = choice.rank;
    factors.intermediate_rank = ressvd::intermediate_rank(m.module.out, m.module.in, plan);
  }
  if (!refits(options) && !refines(options)) {
    factors.weight_loss = report_of(state.weight_loss(choice));
    factors.activation_loss = report_of(state.activation_loss(choice));
    if (options.method == "kfac-svd")
      factors.curvature_loss =
          ressvd::detail::truncation_loss(m.curvature_spectrum, choice.rank).absolute;
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
