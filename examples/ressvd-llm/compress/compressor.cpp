// SPDX-License-Identifier: Apache-2.0
#include "compress/compressor.hpp"

#include <utility>

#include <ressvd/compiled.hpp>

#include "compress/compressor_on.hpp"
#include "io/error.hpp"
#include "model/parallel.hpp"

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
  return std::make_unique<compressor_on<backend>>(backend(make_host_context()), options,
                                                  std::move(fisher));
}

} // namespace ressvd_llm
