// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace ressvd_llm {

struct scratch_matrix {
  std::string name;
  std::vector<std::int64_t> shape;
  std::vector<float> values;
};

// A file of float32 matrices for a later stage of the same run: safetensors, so that the reader's
// checks apply to it. Appears under its name only when it is complete.
void write_scratch(const std::filesystem::path& file, const std::vector<scratch_matrix>& list);

} // namespace ressvd_llm
