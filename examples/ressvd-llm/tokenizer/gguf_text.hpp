// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <memory>

#include "io/gguf_tokenizer.hpp"
#include "io/tokenizer.hpp"
#include "tokenizer/text_tokenizer.hpp"

namespace ressvd_llm {

// The tokenizer that a GGUF file describes, of the kinds "gpt2" and "llama"; ids are those of
// llama.cpp, which normalises no text. `file` is for messages. Throws file_error for other kinds,
// for a pre-tokenizer that is not known, and where the parts contradict each other.
std::unique_ptr<tokenizer> make_gguf_tokenizer(const std::filesystem::path& file,
                                               const gguf_tokenizer& description);

// What it is made of.
tokenizer_parts gguf_tokenizer_parts(const std::filesystem::path& file,
                                     const gguf_tokenizer& description);

} // namespace ressvd_llm
