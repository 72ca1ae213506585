// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace ressvd_llm {

// Element types of tensors. f64 is read (Grams, Fisher weights) and never written; i32 holds the
// order of rows of pivoted matrices and no weights. From q8_0 on they are the quantised ones of
// GGUF files, whose elements are stored in blocks (io/ggml_blocks.hpp); q8_0 and q4_0 alone are
// also written.
enum class dtype {
  f32,
  f16,
  bf16,
  f64,
  i32,
  q8_0,
  q4_0,
  q4_1,
  q5_0,
  q5_1,
  q2_k,
  q3_k,
  q4_k,
  q5_k,
  q6_k
};

// Elements of one block; 1 where the type has no blocks.
std::int64_t block_of(dtype type);
inline bool is_quantised(dtype type) {
  return block_of(type) > 1;
}

// Bytes of one block, which is one element of a type without blocks.
std::size_t size_of(dtype type);

// Bytes of this many elements, which are whole blocks.
std::size_t bytes_of(dtype type, std::int64_t elements);

// "F32", "F16", "BF16", "F64", "I32" as safetensors spells them, "Q8_0", "Q4_K" as GGUF does.
std::string_view name_of(dtype type);

// "bfloat16", "float32", …: the spelling of config.json.
std::string_view torch_name_of(dtype type);

// Accepts both spellings and the command line's "f32", "f16", "bf16", "q8_0", "q4_0"; nothing for
// other text.
std::optional<dtype> parse_dtype(std::string_view text);

// Converts values.size() little-endian elements (whole blocks) at data (any alignment) to float or
// double. Throws std::invalid_argument for i32.
void decode(dtype type, const std::byte* data, std::span<float> values);
void decode(dtype type, const std::byte* data, std::span<double> values);

// Converts to values.size() elements at data (any alignment), rounding to nearest, ties to even;
// values beyond the range of the type become infinite. q8_0 and q4_0 take whole blocks of finite
// values. Throws std::invalid_argument for the other types.
void encode(std::span<const float> values, dtype type, std::byte* data);

} // namespace ressvd_llm
