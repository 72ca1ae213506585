// SPDX-License-Identifier: Apache-2.0
#include "compress/factoring.hpp"

#include <variant>

#include <ressvd/compiled.hpp>

#include "compress/factoring_on_backend.hpp"
#include "model/parallel.hpp"

namespace ressvd_llm {

ressvd::methods::kfac_svd curvature_metric(const compress_options& options) {
  return {.output_power = options.output_power,
          .input_power = options.input_power,
          .ridge = options.curvature_ridge,
          .beta = options.beta.value_or(0)};
}

ressvd::any_method method_of(const compress_options& options) {
  namespace methods = ressvd::methods;
  ressvd::any_method method = ressvd::method_named(options.method);
  if (auto* m = std::get_if<methods::asvd>(&method.chosen)) m->alpha = options.asvd_alpha;
  if (auto* m = std::get_if<methods::adasvd>(&method.chosen))
    m->iterations = options.adasvd_iterations;
  if (auto* m = std::get_if<methods::ressvd>(&method.chosen))
    m->beta = options.beta.value_or(m->beta);
  if (auto* m = std::get_if<methods::tempered>(&method.chosen))
    m->power = options.power.value_or(1.0);
  if (auto* m = std::get_if<methods::kfac_svd>(&method.chosen)) *m = curvature_metric(options);
  return method;
}

std::unique_ptr<factoring_engine> make_factoring_engine(
    const compress_options& options, [[maybe_unused]] const std::shared_ptr<device>& card) {
#ifdef RESSVD_LLM_CUDA
  if (card != nullptr) return make_cuda_factoring_engine(options, *card);
#endif
  using backend = ressvd::eigen_backend<float>;
  return std::make_unique<factoring_on_backend<backend>>(backend(make_host_context()), options);
}

} // namespace ressvd_llm
