// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string_view>

namespace ressvd_llm {

// Element types of tensors. f64 is read (Grams, Fisher weights) and never written; i32 holds the
// order of rows of pivoted matrices and no weights.
enum class dtype { f32, f16, bf16, f64, i32 };

// Bytes of one element.
std::size_t size_of(dtype type);

// "F32", "F16", "BF16", "F64", "I32": the spelling of safetensors.
std::string_view name_of(dtype type);

// "bfloat16", "float32", …: the spelling of config.json.
std::string_view torch_name_of(dtype type);

// Accepts both spellings and the command line's "f32", "f16", "bf16"; nothing for other text.
std::optional<dtype> parse_dtype(std::string_view text);

// Converts values.size() little-endian elements at data (any alignment) to float or double.
// Throws std::invalid_argument for i32.
void decode(dtype type, const std::byte* data, std::span<float> values);
void decode(dtype type, const std::byte* data, std::span<double> values);

// Converts to values.size() elements at data (any alignment), rounding to nearest, ties to even;
// values beyond the range of the type become infinite. Throws std::invalid_argument for f64 and
// i32.
void encode(std::span<const float> values, dtype type, std::byte* data);

} // namespace ressvd_llm
