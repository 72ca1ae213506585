// SPDX-License-Identifier: Apache-2.0
//
// A rank for each matrix by what probes of the model say about it: every matrix is truncated alone,
// and the library's allocator spends the parameters where they save most.
#pragma once

#include "compress/rank_selection.hpp"

namespace ressvd_llm {

// Several rounds need held-out samples.
rank_selection select_by_sensitivity(model_passes& passes, const factored_model& factored,
                                     const compress_options& options, double ratio,
                                     const calibration_samples& samples, kept_results& kept);

} // namespace ressvd_llm
