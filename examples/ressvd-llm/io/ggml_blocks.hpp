// SPDX-License-Identifier: Apache-2.0
//
// The block-quantised element types of ggml: 32 or 256 elements share a scale of 16 bits, and
// parts of 256 have small integer scales of their own. Every product of a scale and a small integer
// is exact in float32, so that the decoded values do not depend on how a compiler fuses them.
#pragma once

#include <cstddef>
#include <span>

#include "io/dtype.hpp"

namespace ressvd_llm {

// The most elements of a block.
inline constexpr std::size_t largest_block = 256;

// The elements of the block at data (any alignment): values.size() = block_of(type).
void decode_block(dtype type, const std::byte* data, std::span<float> values);

// 32 values as ggml's reference rounds them to Q8_0: scale max|v|/127, rounded to nearest, ties
// away from zero.
void encode_q8_0(std::span<const float> values, std::byte* data);

// The same to Q4_0: scale −1/8 of the value of largest magnitude, which becomes −8.
void encode_q4_0(std::span<const float> values, std::byte* data);

} // namespace ressvd_llm
