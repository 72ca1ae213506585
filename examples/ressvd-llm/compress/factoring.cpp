// SPDX-License-Identifier: Apache-2.0
#include "compress/factoring.hpp"

#include <ressvd/compiled.hpp>

#include "compress/factoring_on_backend.hpp"
#include "io/error.hpp"
#include "model/parallel.hpp"

namespace ressvd_llm {

ressvd::any_method method_of(const compress_options& options) {
  namespace methods = ressvd::methods;
  switch (options.method) {
    case method::svd:
      return {methods::svd{}};
    case method::fwsvd:
      return {methods::fwsvd{}};
    case method::asvd:
      return {methods::asvd{.alpha = options.asvd_alpha}};
    case method::svd_llm:
      return {methods::svd_llm{}};
    case method::adasvd:
      return {methods::adasvd{.iterations = options.adasvd_iterations}};
    case method::tempered:
      return {methods::tempered{.power = options.power.value_or(1.0)}};
    case method::ressvd:
      break;
  }
  return {methods::ressvd{.beta = options.beta}};
}

std::unique_ptr<factoring_engine> make_factoring_engine(const compress_options& options) {
  if (options.backend == backend_choice::cuda) {
#ifdef RESSVD_LLM_CUDA
    return make_cuda_factoring_engine(options);
#else
    throw usage_error("--backend cuda: this program was built without the CUDA backend");
#endif
  }
  using backend = ressvd::eigen_backend<float>;
  return std::make_unique<factoring_on_backend<backend>>(backend(make_host_context()),
                                                         options.fisher);
}

} // namespace ressvd_llm
