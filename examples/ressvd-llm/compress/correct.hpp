// SPDX-License-Identifier: Apache-2.0
//
// A correction of a quantised model: for every matrix Q of a GGUF file and W of the original, the
// whitened truncation BA of W − Q, as a LoRA adapter for llama.cpp: y = Qx + B(Ax). The Grams are
// those of the original's inputs.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "compress/options.hpp"
#include "model/comparison.hpp"

namespace ressvd_llm {

struct correct_options {
  std::filesystem::path base = {}; // the GGUF file
  std::int64_t rank = 32;          // of every matrix, at most its smaller side
  // The original is its model, the adapter its output; also the method, the samples, the backend,
  // and the type of the adapter's tensors (f32 where absent).
  compress_options run;
};

struct corrected_matrix {
  std::string name; // in the checkpoint
  std::int64_t rank = 0;
  // ‖(W−Q)X‖² and ‖(W−Q−BA)X‖², relative to the first; absent without a metric of the inputs.
  std::optional<double> remaining_loss;
};

struct correction_report {
  std::string original;
  std::string base;
  std::string output;
  std::vector<corrected_matrix> matrices; // those that differ from the original's
  std::uint64_t base_bytes = 0;
  std::uint64_t bytes = 0; // of the adapter
  std::int64_t heldout_tokens = 0;
  // On the held-out samples, against the original: original, base, corrected. Empty without any.
  std::vector<text_figures> heldout;
};

// Throws usage_error for a base that is no GGUF file or another model than the original, and where
// no matrix differs.
correction_report correct(const correct_options& options);

// The same for a base that does not exist yet: run.output is where to write it, run.type its type
// (q4_0 where absent). The adapter, in float16, comes beside it. A correction that fails leaves a
// complete base. Throws usage_error for a type that is not quantised.
correction_report quantise_and_correct(const compress_options& run, std::int64_t rank);

// Where that adapter is: DIR/model.lora.gguf for the base DIR/model.gguf.
std::filesystem::path adapter_beside(const std::filesystem::path& base);

nlohmann::ordered_json to_json(const correction_report& report);

} // namespace ressvd_llm
