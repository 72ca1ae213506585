// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <string>

#include "io/gguf_tokenizer.hpp"

namespace ressvd_llm {

// A GGUF file's tokenizer as the text of a tokenizer.json that gives the same ids. They may differ
// where two merges have equal scores, and where a character without a token stands before one that
// goes to bytes: the package tokenizers, whose rules tokenizer.json has, exchanges these. `file` is
// for messages. Throws file_error for a tokenizer that make_gguf_tokenizer refuses.
std::string tokenizer_json_of(const std::filesystem::path& file, const gguf_tokenizer& description);

} // namespace ressvd_llm
