// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace ressvd_llm {

template <class T>
struct scratch_tensor {
  std::string name;
  std::vector<std::int64_t> shape;
  std::vector<T> values;
};
using scratch_matrix = scratch_tensor<float>;

// A file of float32 or float64 matrices for a later stage of the same run: safetensors, so that the
// reader's checks apply to it. Appears under its name only when it is complete.
void write_scratch(const std::filesystem::path& file, const std::vector<scratch_matrix>& list);
void write_scratch(const std::filesystem::path& file,
                   const std::vector<scratch_tensor<double>>& list);

} // namespace ressvd_llm
