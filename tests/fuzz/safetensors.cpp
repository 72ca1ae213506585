// SPDX-License-Identifier: Apache-2.0
//
// Any bytes as a safetensors file: refused, or tensors that tile the data and can be read.
#include "io/safetensors.hpp"

#include <optional>
#include <set>
#include <span>
#include <vector>

#include "fuzz.hpp"
#include "io/dtype.hpp"
#include "io/error.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto content = std::as_bytes(std::span(data, size));
  try {
    std::set<std::string> names;
    std::size_t total = 0;
    for (const ressvd_llm::stored_tensor& tensor :
         ressvd_llm::read_safetensors("x.safetensors", content)) {
      fuzz::require(names.insert(tensor.name).second);
      total += tensor.data.size();
      std::size_t elements = 1;
      for (const std::int64_t extent : tensor.shape) {
        fuzz::require(extent >= 0);
        elements *= static_cast<std::size_t>(extent);
      }
      const std::optional<ressvd_llm::dtype> type = ressvd_llm::parse_dtype(tensor.type);
      if (!type) continue;
      fuzz::require(elements * ressvd_llm::size_of(*type) == tensor.data.size());
      if (type == ressvd_llm::dtype::i32) continue;
      std::vector<float> values(elements);
      ressvd_llm::decode(*type, tensor.data.data(), std::span(values));
    }
    fuzz::require(total < size);
  } catch (const ressvd_llm::file_error& error) {
    fuzz::require_message(error);
  }
  return 0;
}
