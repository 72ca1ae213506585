// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include <ressvd/cuda.hpp>

#include "model/device.hpp"

namespace ressvd_llm {

class device {
 public:
  explicit device(const device_options& asked)
      : options(asked),
        context(ressvd::cuda_context::owning(
            {.memory_limit = static_cast<std::size_t>(asked.memory_limit),
             .kernel_cache = asked.kernel_cache.string()})) {}

  device_options options;
  std::shared_ptr<ressvd::cuda_context> context;
};

std::unique_ptr<forward_engine> make_cuda_forward(const model_config& config, const device& card,
                                                  const card_forward_options& options);

} // namespace ressvd_llm
