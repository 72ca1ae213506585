// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "io/tokenizer.hpp"

namespace ressvd_llm {

// Token ids of a file, by its extension: .npy (little-endian integers in C order, flattened), .u16
// and .u32 (little-endian, nothing else), .txt through the tokenizer. Throws file_error that names
// the position of the first id outside [0, vocab), and when the text needs a tokenizer and there
// is none (nullptr).
std::vector<std::int32_t> read_tokens(const std::filesystem::path& file, std::int64_t vocab,
                                      const tokenizer* text_tokenizer);

// The same for the content of a file, whose name tells its kind.
std::vector<std::int32_t> parse_tokens(const std::filesystem::path& file,
                                       std::span<const std::byte> content, std::int64_t vocab,
                                       const tokenizer* text_tokenizer);

// True for .npy, .u16 and .u32: no tokenizer is needed.
bool holds_token_ids(const std::filesystem::path& file);

// Throws file_error unless there are at least `window` tokens.
void require_window(const std::filesystem::path& file, std::span<const std::int32_t> tokens,
                    std::int64_t window);

} // namespace ressvd_llm
