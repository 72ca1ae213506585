// SPDX-License-Identifier: Apache-2.0
#include <utility>

#include <ressvd/cuda.hpp>

#include "compress/factoring_on_backend.hpp"

namespace ressvd_llm {

std::unique_ptr<compressor> make_cuda_compressor(const compress_options& options,
                                                 std::optional<checkpoint> fisher) {
  using backend = ressvd::cuda_backend<float>;
  return std::make_unique<compressor_on<backend>>(backend(), options, std::move(fisher));
}

} // namespace ressvd_llm
