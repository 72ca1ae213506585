// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>

#include "compress/compress.hpp"

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

} // namespace ressvd_llm::testing
