// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <vector>

#include "compress/compress.hpp"
#include "compress/model_passes.hpp"
#include "llm/model/fixture.hpp"
#include "support/catch.hpp"

namespace ressvd_llm::testing {

// A compression of a fixture that calibrates on itself and takes a moment.
inline compress_options short_compression(const std::filesystem::path& model,
                                          const std::filesystem::path& output) {
  compress_options o;
  o.model = model;
  o.output = output;
  o.ratio = 0.4;
  o.method = "svd-llm";
  o.allocation = allocation::uniform;
  o.samples = 24;
  o.seqlen = 16;
  o.search_samples = 8;
  o.heldout_samples = 4;
  o.probe_samples = 4;
  o.type = dtype::f32;
  o.seed = 7;
  return o;
}

// Where a run keeps what it has done until its output is complete.
inline std::filesystem::path partial_of(std::filesystem::path output) {
  return output += ".partial";
}

inline double relative_difference(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  return relative_error(a, b);
}

inline std::vector<float> logits_of(const std::filesystem::path& directory, const fixture& f) {
  return run(language_model::open(directory), f.tokens, f.window());
}

} // namespace ressvd_llm::testing
