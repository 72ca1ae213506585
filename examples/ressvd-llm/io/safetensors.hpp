// SPDX-License-Identifier: Apache-2.0
//
// The header of a safetensors file: 8 bytes length N (little-endian), N bytes of JSON
//   {"__metadata__": {text: text, …}, NAME: {"dtype": D, "shape": [s, …], "data_offsets": [b, e]},
//   …}
// and the data, where tensor NAME occupies the bytes [b, e).
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace ressvd_llm {

struct stored_tensor {
  std::string name;
  std::string type; // one of the format's element types
  std::vector<std::int64_t> shape;
  std::span<const std::byte> data;
};

// The tensors of the file whose whole content is given, in the order of their data. Verified: the
// header lies in the file and has this form and no other; names are unique; shape, element type
// and offsets agree without overflow; the data of all tensors fill the rest of the file without
// overlap, hole or excess. Memory is proportional to the header. Throws file_error.
std::vector<stored_tensor> read_safetensors(const std::filesystem::path& file,
                                            std::span<const std::byte> content);

// The text of an index, {"weight_map": {NAME: SHARD, …}, …}, as the names of each shard's tensors.
// The shards have not been looked at: their names are as in the file. Throws file_error.
std::map<std::string, std::vector<std::string>> read_index(const std::filesystem::path& file,
                                                           std::string_view text);

} // namespace ressvd_llm
