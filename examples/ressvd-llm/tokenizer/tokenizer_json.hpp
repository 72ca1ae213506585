// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string_view>

#include "io/gguf_tokenizer.hpp"
#include "io/tokenizer.hpp"

namespace ressvd_llm {

// The tokenizer of a text in the format of Hugging Face's tokenizer.json; ids are those of the
// Python package tokenizers. `file` is for messages. Throws file_error for what is malformed, and
// names what is not supported (docs/program.md has the list).
std::unique_ptr<tokenizer> parse_tokenizer_json(const std::filesystem::path& file,
                                                std::string_view text);

// The same tokenizer as GGUF describes it ("gpt2", without bos and eos): byte-level ones whose
// pre-tokenizer has a name there. Normalisation is left out: llama.cpp has none. `bos` is the
// model's. Throws file_error for what parse_tokenizer_json refuses and for what GGUF cannot say.
gguf_tokenizer gguf_tokenizer_of_json(const std::filesystem::path& file, std::string_view text,
                                      std::optional<std::int32_t> bos);

} // namespace ressvd_llm
