// SPDX-License-Identifier: Apache-2.0
#include <ressvd/cuda.hpp>

#include "compress/factoring_on_backend.hpp"
#include "model/device_cuda.hpp"

namespace ressvd_llm {

std::unique_ptr<factoring_engine> make_cuda_factoring_engine(const compress_options& options,
                                                             const device& card) {
  using backend = ressvd::cuda_backend<float>;
  return std::make_unique<factoring_on_backend<backend>>(backend(card.context), options);
}

} // namespace ressvd_llm
