// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "io/tensor.hpp"

namespace ressvd_llm {

// The tensors of a model directory: model.safetensors, or the shards that
// model.safetensors.index.json names; or those of a GGUF file, under the names that they have in a
// model directory. Matrices that Phi-3 or a GGUF file stores as one appear as the parts of it that
// they are. Files
// are mapped, never loaded whole, and everything about them is verified when they are opened:
// header size and syntax, offsets inside the file without overlap or hole, shapes without overflow
// and in agreement with the offsets, shards inside the directory. Copies share the mappings; const
// members may be called from several threads.
class checkpoint {
 public:
  // Throws file_error.
  static checkpoint open(const std::filesystem::path& model);

  // A single safetensors file that is not a model (Fisher weights, Grams).
  static checkpoint open_file(const std::filesystem::path& file);

  bool contains(std::string_view name) const;

  // Throws file_error when the tensor is missing or its element type is not a floating-point one
  // this program reads. The view lives as long as any copy of the checkpoint.
  const tensor_view& at(std::string_view name) const;

  // The same for a tensor of type I32, and of no other.
  const tensor_view& at_i32(std::string_view name) const;

  // Sorted.
  std::vector<std::string> names() const;

  // The file that holds the tensor; throws file_error when it is missing.
  const std::filesystem::path& file_of(std::string_view name) const;

  // Shape and element count of any tensor, whatever its element type ("I64" and so on as spelt in
  // the file).
  struct description {
    std::string type;
    std::vector<std::int64_t> shape;
    std::int64_t elements = 0;
    std::uint64_t bytes = 0;
  };
  description describe(std::string_view name) const;

  // All files of the checkpoint together.
  std::uint64_t file_bytes() const;

  // What was opened: the directory, or the single file.
  const std::filesystem::path& path() const;

  // Drops the tensor's pages from memory (see mapped_file::release).
  void release(std::string_view name) const;

 private:
  struct contents;
  explicit checkpoint(std::shared_ptr<const contents> data);
  std::shared_ptr<const contents> data_;
};

// The tensor's values, row-major. Throws file_error, naming file and tensor, when it is missing,
// when its shape is not the expected one, or when a value is not finite. Its pages are released.
std::vector<float> read_f32(const checkpoint& source, std::string_view name,
                            const std::vector<std::int64_t>& shape);
std::vector<double> read_f64(const checkpoint& source, std::string_view name,
                             const std::vector<std::int64_t>& shape);

// The same for integers of type I32; any value is one.
std::vector<std::int32_t> read_i32(const checkpoint& source, std::string_view name,
                                   const std::vector<std::int64_t>& shape);

// Throws file_error unless the tensor exists with this shape and a readable floating-point element
// type, or with type I32.
void require_shape(const checkpoint& source, std::string_view name,
                   const std::vector<std::int64_t>& shape);
void require_i32_shape(const checkpoint& source, std::string_view name,
                       const std::vector<std::int64_t>& shape);

} // namespace ressvd_llm
