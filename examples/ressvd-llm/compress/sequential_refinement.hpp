// SPDX-License-Identifier: Apache-2.0
//
// Refinement of a model: block by block, each from the states that the compressed and refined
// blocks before it really produce, towards the original block's output for the original states.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>

#include "compress/block_refinement.hpp"
#include "compress/model_passes.hpp"
#include "compress/options.hpp"
#include "compress/samples.hpp"

namespace ressvd_llm {

// Holds the states of its samples in the original and in the compressed model; these are the same
// until the first block with a compressed matrix, and cost one forward pass a layer. The passes
// must outlive the object.
class sequential_refinement {
 public:
  // Throws usage_error for fewer than two samples.
  sequential_refinement(model_passes& passes, const refine_options& options, std::uint64_t seed,
                        const sample_set& samples);

  // The next block, the first one to begin with, from its closed form; with what became of it where
  // it has compressed matrices.
  std::optional<refined_block> refine(layer_weights& weights, const std::function<void()>& stepped);

  // Passes over the next block, which an earlier run has refined.
  void skip(const layer_weights& refined);

  std::int64_t training_windows() const { return training_; }
  std::int64_t heldout_windows() const { return windows_ - training_; }
  // Steps of a block at most.
  std::int64_t steps() const { return block_.steps(training_); }

 private:
  model_passes& passes_;
  block_refinement block_;
  double anchor_;
  std::int64_t length_;
  std::int64_t windows_;
  std::int64_t training_;
  std::int64_t layer_ = 0;
  hidden_states original_;
  hidden_states compressed_; // empty while it is the original
};

// What a run keeps of a refined block for the one that resumes it.
void save_block(const std::filesystem::path& scratch, const refined_block& block);
// Absent for a block without compressed matrices. Throws file_error for a damaged file.
std::optional<refined_block> load_block(const std::filesystem::path& scratch, std::int64_t layer);

} // namespace ressvd_llm
