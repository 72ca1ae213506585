// SPDX-License-Identifier: Apache-2.0
//
// Refinement of a checkpoint that was compressed before: its factors, block by block, towards the
// original's outputs.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "compress/compression_report.hpp"
#include "compress/options.hpp"
#include "model/comparison.hpp"

namespace ressvd_llm {

struct refine_run {
  std::filesystem::path compressed; // factored, of pairs or pivoted
  // The original is its model; also the output, the samples, the refinement, and the type of what
  // is trained (the compressed checkpoint's where absent).
  compress_options run;
};

struct refine_report {
  std::string original;
  std::string compressed;
  std::string output;
  std::string options; // all that the output's bytes depend on, as JSON
  refinement_report refinement;
  std::int64_t heldout_tokens = 0;
  // On the held-out samples: original, compressed, refined. Empty without any.
  std::vector<text_figures> heldout;
  double seconds = 0;
  std::uint64_t memory_estimate = 0; // bytes
  std::uint64_t memory_peak = 0;
};

// Throws usage_error for a checkpoint without factors or of another model than the original.
refine_report refine(const refine_run& options);

nlohmann::ordered_json to_json(const refine_report& report);

} // namespace ressvd_llm
