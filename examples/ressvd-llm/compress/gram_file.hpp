// SPDX-License-Identifier: Apache-2.0
//
// Statistics of the inputs of a model's matrices that were gathered elsewhere: --grams FILE, a
// safetensors file as docs/checkpoint_format.md describes it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include <ressvd/compiled.hpp>

#include "compress/model_ranks.hpp"
#include "io/checkpoint.hpp"
#include "model/layer.hpp"

namespace ressvd_llm {

// The inputs of those matrices of a layer for which some rank is wanted, in the order of
// linear_modules.
std::vector<layer_input> wanted_inputs(const model_config& config, std::int64_t layer,
                                       const std::vector<rank_list>& wanted);

// Σ x·xᵀ, n × n, and the number of its tokens. Both throw file_error, naming file and tensor, for
// what is none: not finite, not symmetric, a negative square, fewer tokens than `least`.
std::vector<double> read_gram(const checkpoint& source, const std::string& name, std::int64_t n);
std::int64_t read_tokens(const checkpoint& source, const std::string& name, std::int64_t least = 1);

class gram_file {
 public:
  // Throws file_error.
  explicit gram_file(const std::filesystem::path& file) : source_(checkpoint::open_file(file)) {}

  // Throws file_error unless every wanted input's tensors are there, have the model's shapes, and
  // hold what read() takes for a Gram: reads all of them once, so that no run fails on them later.
  void require(const model_config& config, const candidate_ranks& wanted) const;

  // The sums of one input; of an expert's they may have no tokens. Throws file_error, naming file
  // and tensor, also for values that are not those of a Gram: not finite, not symmetric, a negative
  // square or magnitude, no tokens.
  ressvd::gram_state read(const model_config& config, std::int64_t layer,
                          const layer_input& input) const;

 private:
  struct names;
  names require(const model_config& config, std::int64_t layer, const layer_input& input) const;

  checkpoint source_;
};

} // namespace ressvd_llm
