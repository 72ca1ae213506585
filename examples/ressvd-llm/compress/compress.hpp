// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "compress/compression_report.hpp"
#include "compress/options.hpp"

namespace ressvd_llm {

// Compresses a model directory into another one: takes samples, factors every matrix, chooses the
// ranks, refits where asked to, writes, evaluates. Throws usage_error and file_error; on any error
// nothing remains of the output. A killed run leaves OUTPUT.partial, from which options.resume goes
// on.
compression_report compress(const compress_options& options);

} // namespace ressvd_llm
