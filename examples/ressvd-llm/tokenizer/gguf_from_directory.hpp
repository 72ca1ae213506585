// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <string>
#include <variant>

#include "io/config.hpp"
#include "io/gguf_tokenizer.hpp"

namespace ressvd_llm {

// The tokenizer of a model directory for a GGUF file, with as many tokens as the model has ids; or
// why there is none: its ids in llama.cpp would be others.
std::variant<gguf_tokenizer, std::string> gguf_tokenizer_of(const std::filesystem::path& directory,
                                                            const model_config& config);

} // namespace ressvd_llm
