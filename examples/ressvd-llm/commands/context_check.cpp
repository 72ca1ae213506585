// SPDX-License-Identifier: Apache-2.0
#include "commands/context_check.hpp"

#include <cstdio>

#include "io/error.hpp"

namespace ressvd_llm {

void require_context(const model_config& config, std::int64_t tokens, const std::string& request) {
  if (tokens <= config.max_positions) return;
  const std::string context = std::to_string(config.max_positions) + " positions";
  if (config.family == model_family::opt) {
    throw usage_error(request + ": " + std::to_string(tokens) +
                      " positions, and the model has learned " + context);
  }
  std::fprintf(stderr, "ressvd-llm: warning: %s: %lld positions, and the model's context is %s\n",
               request.c_str(), static_cast<long long>(tokens), context.c_str());
}

} // namespace ressvd_llm
