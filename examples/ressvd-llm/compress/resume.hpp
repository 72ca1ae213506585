// SPDX-License-Identifier: Apache-2.0
//
// What an interrupted run leaves beside its output so that the next one goes on from there.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "compress/options.hpp"
#include "io/config.hpp"
#include "model/layer.hpp"

namespace ressvd_llm {

// How far a run got: the note in the checkpoint writer's journal.
struct run_state {
  std::string options;          // fingerprint() of the run
  std::int64_t next_layer = -1; // to be written; -1 before anything is

  std::string to_text() const;
  static run_state from_text(std::string_view text);
};

// The factored matrices of a layer, since a refitted layer cannot be had again from its bases. With
// them what else the options of a refinement train.
void save_factors(const std::filesystem::path& file, const model_config& config, std::int64_t layer,
                  const layer_weights& weights, const refine_options& trained = {});
// Puts them in place of the originals.
void load_factors(const std::filesystem::path& file, const model_config& config, std::int64_t layer,
                  layer_weights& weights);

// Throws the file_error for an intermediate file that is not what a run wrote.
[[noreturn]] void fail_damaged(const std::filesystem::path& file);

} // namespace ressvd_llm
