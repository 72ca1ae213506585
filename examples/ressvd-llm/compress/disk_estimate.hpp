// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>

#include "compress/model_ranks.hpp"
#include "compress/options.hpp"
#include "io/checkpoint.hpp"
#include "io/config.hpp"

namespace ressvd_llm {

// Bytes that a compression will have on disk at its end, when it needs most, by what they are for.
struct disk_estimate {
  std::uint64_t bases = 0;     // and residual stages, of all matrices
  std::uint64_t curvature = 0; // of all matrices
  std::uint64_t refits =
      0; // factors fitted to the compressed model's inputs or trained, for --resume
  std::uint64_t tensors = 0; // of the output; they are there twice while it is put together

  std::uint64_t total() const { return bases + curvature + refits + 2 * tensors; }
};

// `wanted` as ranks_of_all gives it; `kept_share` is what stays of the layers' matrices, at most.
disk_estimate estimate_disk(const compress_options& options, const model_config& config,
                            const checkpoint& source, const candidate_ranks& wanted,
                            double kept_share);

// Throws usage_error, with both numbers, where a run that needs so many bytes does not fit beside
// what `partial` holds of it already.
void require_disk(const std::filesystem::path& partial, std::uint64_t needed);

} // namespace ressvd_llm
