// SPDX-License-Identifier: Apache-2.0
#include "compress/factoring.hpp"

#include <utility>

#include <ressvd/compiled.hpp>

#include "compress/factoring_on_backend.hpp"
#include "io/error.hpp"

namespace ressvd_llm {

std::unique_ptr<compressor> make_compressor(const compress_options& options,
                                            std::optional<checkpoint> fisher) {
  if (options.backend == backend_choice::cuda) {
#ifdef RESSVD_LLM_CUDA
    return make_cuda_compressor(options, std::move(fisher));
#else
    throw usage_error("--backend cuda: this program was built without the CUDA backend");
#endif
  }
  using backend = ressvd::eigen_backend<float>;
  return std::make_unique<compressor_on<backend>>(backend(), options, std::move(fisher));
}

} // namespace ressvd_llm
