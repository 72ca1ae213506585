// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string_view>

namespace ressvd_llm {

// Element types of weights. f64 is read (Grams, Fisher weights) and never written.
enum class dtype { f32, f16, bf16, f64 };

// Bytes of one element.
std::size_t size_of(dtype type);

// "F32", "F16", "BF16", "F64": the spelling of safetensors.
std::string_view name_of(dtype type);

// "bfloat16", "float32", …: the spelling of config.json.
std::string_view torch_name_of(dtype type);

// Accepts both spellings and the command line's "f32", "f16", "bf16"; nothing for other text.
std::optional<dtype> parse_dtype(std::string_view text);

// Converts values.size() little-endian elements at data (any alignment) to float or double.
void decode(dtype type, const std::byte* data, std::span<float> values);
void decode(dtype type, const std::byte* data, std::span<double> values);

// Converts to values.size() elements at data (any alignment), rounding to nearest, ties to even;
// values beyond the range of the type become infinite.
void encode(std::span<const float> values, dtype type, std::byte* data);

} // namespace ressvd_llm
