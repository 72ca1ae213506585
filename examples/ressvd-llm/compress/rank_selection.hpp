// SPDX-License-Identifier: Apache-2.0
//
// The choice of all ranks, by the allocation that the options name.
#pragma once

#include <vector>

#include "compress/compression_report.hpp"
#include "compress/factored_model.hpp"
#include "compress/kept_results.hpp"
#include "compress/model_passes.hpp"
#include "compress/model_ranks.hpp"
#include "compress/options.hpp"
#include "compress/samples.hpp"

namespace ressvd_llm {

struct rank_selection {
  model_ranks ranks;
  allocation_report how;
};

// `ratio` is that of the matrices; `candidates` those that bases were made for. Everything that is
// measured for the choice is kept, so that a resumed run makes the same one at once.
rank_selection select_ranks(model_passes& passes, const factored_model& factored,
                            const compress_options& options, double ratio,
                            const std::vector<ressvd::layer_candidate>& candidates,
                            const calibration_samples& samples, kept_results& kept);

} // namespace ressvd_llm
