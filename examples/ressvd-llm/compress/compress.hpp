// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nlohmann/json.hpp>

#include "compress/options.hpp"

namespace ressvd_llm {

// Compresses a model directory into another one and returns the report. Throws usage_error and
// file_error; on any error nothing remains of the output. A killed run leaves OUTPUT.partial, from
// which options.resume goes on.
nlohmann::ordered_json compress(const compress_options& options);

} // namespace ressvd_llm
