// SPDX-License-Identifier: Apache-2.0
//
// A rank for each matrix from the spectra in the curvature metric alone: they are in one unit, the
// loss, so that nothing has to be probed. The second-order model holds near the original weights.
// Further rounds look where they led: gradients at the compressed model say by how much each
// matrix's share has grown, and the ranks that follow are kept where the divergence falls.
#pragma once

#include "compress/rank_selection.hpp"

namespace ressvd_llm {

// The smallest predicted loss within the budget of `ratio`. The samples judge the rounds and
// measure the loss that was predicted. A round costs a backward pass over them and two forward
// ones.
rank_selection select_by_fisher(model_passes& passes, const factored_model& factored,
                                const compress_options& options, double ratio,
                                const sample_set& samples, kept_results& kept);

} // namespace ressvd_llm
