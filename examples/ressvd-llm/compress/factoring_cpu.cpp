// SPDX-License-Identifier: Apache-2.0
#include <ressvd/compiled.hpp>

#include "compress/factoring_on_backend.hpp"
#include "io/error.hpp"

namespace ressvd_llm {

std::unique_ptr<factoring_engine> make_factoring_engine(const compress_options& options) {
  if (options.backend == backend_choice::cuda) {
#ifdef RESSVD_LLM_CUDA
    return make_cuda_factoring_engine(options);
#else
    throw usage_error("--backend cuda: this program was built without the CUDA backend");
#endif
  }
  using backend = ressvd::eigen_backend<float>;
  return std::make_unique<factoring_on_backend<backend>>(backend(), options);
}

} // namespace ressvd_llm
