// SPDX-License-Identifier: Apache-2.0
//
// GGUF files, versions 2 and 3, little-endian (sizes and counts of 64 bits, kinds of 32):
//   "GGUF", version, number of tensors, number of pairs
//   the pairs: key, kind, value      text: length and bytes; array: kind, length and values
//   the tensors: name, number of dimensions, extents (innermost first), type, offset
//   the data, from the next multiple of the alignment on; every offset is a multiple of it, too
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "io/dtype.hpp"
#include "io/safetensors.hpp"

namespace ressvd_llm {

// Kinds of values, as the file numbers them.
enum class gguf_kind : std::uint32_t {
  u8,
  i8,
  u16,
  i16,
  u32,
  i32,
  f32,
  boolean,
  text,
  array,
  u64,
  i64,
  f64
};

struct gguf_value {
  std::string key;
  gguf_kind kind = gguf_kind::u8; // of the elements of an array
  bool is_array = false;
  std::uint64_t count = 1;
  std::span<const std::byte> data; // the value or values
  std::span<const std::byte> pair; // the whole pair as it lies in the file
};

// The pairs of a file, in its order. Getters give nothing for a key that is missing and throw
// file_error for a value of another kind.
class gguf_metadata {
 public:
  gguf_metadata(std::filesystem::path file, std::vector<gguf_value> values);

  const std::filesystem::path& file() const { return file_; }
  const std::vector<gguf_value>& values() const { return values_; }
  const gguf_value* find(std::string_view key) const;

  // Of any kind of integer.
  std::optional<std::int64_t> integer(std::string_view key) const;
  // Of any kind of number, finite. Of f32 it is the shortest decimal that rounds to it: 1e-5 is
  // 1e-5.
  std::optional<double> number(std::string_view key) const;
  std::optional<bool> flag(std::string_view key) const;
  std::optional<std::string> text(std::string_view key) const;
  std::optional<std::vector<std::string>> texts(std::string_view key) const;
  std::optional<std::vector<std::int32_t>> integers(std::string_view key) const; // i32
  std::optional<std::vector<float>> numbers(std::string_view key) const;         // f32
  std::optional<std::vector<bool>> flags(std::string_view key) const;

  [[noreturn]] void fail(std::string_view key, const std::string& what) const;

 private:
  const gguf_value* of_kind(std::string_view key, gguf_kind kind, bool array) const;

  std::filesystem::path file_;
  std::vector<gguf_value> values_;
};

struct gguf_content {
  gguf_metadata metadata;
  // In the order of their data; types as ggml names them ("Q4_K"), shapes outermost first.
  std::vector<stored_tensor> tensors;
};

// What the file whose whole bytes are given holds; it refers to them. Verified: version and byte
// order, every length and count lies in the file, keys and names are unique, kinds and types are
// known, rows are whole blocks, sizes do not overflow, the data of the tensors follow each other at
// aligned offsets without overlap or hole and end with the file. Memory is proportional to what
// precedes the data. Throws file_error.
gguf_content read_gguf(const std::filesystem::path& file, std::span<const std::byte> content);

// Whether the path is a file rather than a model directory.
bool is_gguf(const std::filesystem::path& path);

// Pairs to be written.
class gguf_pairs {
 public:
  void text(std::string_view key, std::string_view value);
  void u32(std::string_view key, std::uint32_t value);
  void f32(std::string_view key, float value);
  void flag(std::string_view key, bool value);
  void texts(std::string_view key, std::span<const std::string> values);
  void integers(std::string_view key, std::span<const std::int32_t> values);
  void numbers(std::string_view key, std::span<const float> values);
  void flags(std::string_view key, const std::vector<bool>& values);
  // As it is in another file.
  void copy(const gguf_value& value);

  std::uint64_t count() const { return count_; }
  const std::string& bytes() const { return bytes_; }

 private:
  void begin(std::string_view key, gguf_kind kind);
  void begin_array(std::string_view key, gguf_kind kind, std::size_t count);

  std::uint64_t count_ = 0;
  std::string bytes_;
};

struct gguf_tensor {
  std::string name;
  dtype type = dtype::f32;
  std::vector<std::int64_t> shape; // outermost first
  std::uint64_t bytes = 0;
};

// Of the files that are written.
inline constexpr std::uint64_t gguf_alignment = 32;

// What precedes the data: version 3. Tensors follow each other in this order, each filled up to
// gguf_alignment.
std::string gguf_header(const gguf_pairs& pairs, std::span<const gguf_tensor> tensors);

} // namespace ressvd_llm
