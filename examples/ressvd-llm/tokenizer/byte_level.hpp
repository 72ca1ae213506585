// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

namespace ressvd_llm {

// GPT-2's alphabet: a printable character for each byte, under which byte-level vocabularies are
// written.
std::string bytes_to_characters(std::string_view bytes);

// Its inverse, appended. False, and nothing appended, where a character stands for no byte.
bool append_bytes_of(std::string_view characters, std::string& bytes);

} // namespace ressvd_llm
