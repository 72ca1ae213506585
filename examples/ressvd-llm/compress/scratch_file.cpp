// SPDX-License-Identifier: Apache-2.0
#include "compress/scratch_file.hpp"

#include <array>
#include <bit>
#include <cstddef>
#include <span>

#include <nlohmann/json.hpp>

#include "io/output_file.hpp"

namespace ressvd_llm {
namespace {

template <class T>
void write_tensors(const std::filesystem::path& file, const std::vector<scratch_tensor<T>>& list,
                   const char* type) {
  auto header = nlohmann::ordered_json::object();
  std::uint64_t offset = 0;
  for (const scratch_tensor<T>& m : list) {
    const std::uint64_t end = offset + m.values.size() * sizeof(T);
    header[m.name] = {{"dtype", type}, {"shape", m.shape}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  const std::string text = header.dump();
  const auto length = std::bit_cast<std::array<std::byte, 8>>(std::uint64_t{text.size()});
  write_whole_file(file, [&](output_file& out) {
    out.write(length);
    out.write(text);
    for (const scratch_tensor<T>& m : list)
      out.write(std::as_bytes(std::span(m.values)));
  });
}

} // namespace

void write_scratch(const std::filesystem::path& file, const std::vector<scratch_matrix>& list) {
  write_tensors(file, list, "F32");
}

void write_scratch(const std::filesystem::path& file,
                   const std::vector<scratch_tensor<double>>& list) {
  write_tensors(file, list, "F64");
}

} // namespace ressvd_llm
