// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "compress/options.hpp"
#include "model/evaluation.hpp"
#include "model/language_model.hpp"

namespace ressvd_llm {

// Windows of equal length, one after the other.
struct sample_set {
  std::int64_t length = 0;
  std::vector<std::int32_t> ids;

  std::int64_t count() const {
    return length == 0 ? 0 : static_cast<std::int64_t>(ids.size()) / length;
  }
  std::int64_t tokens() const { return static_cast<std::int64_t>(ids.size()); }
  // The first so many windows, all where there are fewer.
  sample_set first(std::int64_t windows) const;
};

struct calibration_samples {
  sample_set calibration;
  sample_set heldout; // never seen by the calibration
};

// Samples of options.seqlen tokens (at most the model's context): written by the model itself, or
// cut from a file at random starts (or its first windows). Held-out windows are drawn after the
// calibration ones; those of a file come from its last tenth, which calibration leaves alone, or,
// with its first windows in use, from what follows them.
// options.self_samples windows that the model writes are spread evenly among those of a file.
// Throws file_error when the file is too short.
calibration_samples make_samples(const compress_options& options, const language_model& model);
// Only the first `needed` ones of a calibration with a file; the last ones of the model's own.
calibration_samples make_samples(const compress_options& options, const language_model& model,
                                 std::int64_t needed);

// For a resumed run: the samples in a file of their own, and read back. Throws file_error for ids
// that the model does not have.
void save_samples(const std::filesystem::path& file, const calibration_samples& samples);
calibration_samples load_samples(const std::filesystem::path& file, const model_config& config);

} // namespace ressvd_llm
