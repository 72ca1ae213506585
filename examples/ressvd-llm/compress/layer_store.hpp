// SPDX-License-Identifier: Apache-2.0
//
// The factored layers of a run on disk: a large model's bases do not fit in memory beside its
// weights.
#pragma once

#include <cstdint>
#include <filesystem>
#include <utility>

#include "compress/factored_layer.hpp"
#include "io/config.hpp"

namespace ressvd_llm {

// A layer counts as done when its file is complete.
class layer_store {
 public:
  explicit layer_store(std::filesystem::path directory) : directory_(std::move(directory)) {}

  bool contains(std::int64_t layer) const;
  void save(const factored_layer& layer) const;
  factored_layer load(const model_config& config, std::int64_t layer) const;
  // The layer without its bases, which is enough for ranks, spectra and reports.
  factored_layer load_summary(const model_config& config, std::int64_t layer) const;

 private:
  std::filesystem::path tensors(std::int64_t layer) const;
  std::filesystem::path summary(std::int64_t layer) const;

  std::filesystem::path directory_;
};

} // namespace ressvd_llm
