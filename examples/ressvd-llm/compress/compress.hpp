// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "compress/compression_report.hpp"
#include "compress/options.hpp"

namespace ressvd_llm {

// Compresses a model directory into another one: takes samples, factors every matrix, chooses the
// ranks, refits where asked to, writes, evaluates. Throws usage_error and file_error. A request
// that cannot be carried out leaves nothing; an error later, a signal or a kill leaves
// OUTPUT.partial, from which options.resume goes on. An evaluation that fails is an entry of the
// report, since the output is complete then.
compression_report compress(const compress_options& options);

} // namespace ressvd_llm
