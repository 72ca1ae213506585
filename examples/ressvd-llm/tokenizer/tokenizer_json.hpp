// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <memory>
#include <string_view>

#include "io/tokenizer.hpp"

namespace ressvd_llm {

// The tokenizer of a text in the format of Hugging Face's tokenizer.json; ids are those of the
// Python package tokenizers. `file` is for messages. Throws file_error for what is malformed, and
// names what is not supported (docs/program.md has the list).
std::unique_ptr<tokenizer> parse_tokenizer_json(const std::filesystem::path& file,
                                                std::string_view text);

} // namespace ressvd_llm
