// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "io/config.hpp"

namespace ressvd_llm {

// For `tokens` positions in one window, as `request` asks for them. Beyond the model's context a
// table of learned positions has no entry: usage_error. Rotations can be computed there, but the
// model has not been trained on them: a warning on stderr.
void require_context(const model_config& config, std::int64_t tokens, const std::string& request);

} // namespace ressvd_llm
