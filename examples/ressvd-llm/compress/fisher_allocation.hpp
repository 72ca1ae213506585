// SPDX-License-Identifier: Apache-2.0
//
// A rank for each matrix from the spectra in the curvature metric alone: they are in one unit, the
// loss, so that nothing has to be probed.
#pragma once

#include "compress/rank_selection.hpp"

namespace ressvd_llm {

// The smallest predicted loss within the budget of `ratio`; the samples measure the loss that was
// predicted.
rank_selection select_by_fisher(model_passes& passes, const factored_model& factored,
                                const compress_options& options, double ratio,
                                const sample_set& samples, kept_results& kept);

} // namespace ressvd_llm
