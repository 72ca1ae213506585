// SPDX-License-Identifier: Apache-2.0
//
// The power of tempered whitening whose uniformly compressed model is closest to the original on
// samples that no Gram has seen.
#pragma once

#include <filesystem>
#include <vector>

#include "compress/compression_report.hpp"
#include "compress/factoring.hpp"
#include "compress/kept_results.hpp"
#include "compress/model_passes.hpp"
#include "compress/options.hpp"
#include "compress/samples.hpp"

namespace ressvd_llm {

struct power_choice {
  double power = 1;
  std::vector<power_trial> curve; // empty where the options name the power
};

// Factors once for each power, in a folder of its own below `scratch` that is removed again. Needs
// held-out samples.
power_choice search_power(model_passes& passes, factoring_engine& engine,
                          const compress_options& options, double ratio,
                          const calibration_samples& samples, const std::filesystem::path& scratch,
                          kept_results& kept);

} // namespace ressvd_llm
