// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace ressvd_llm {

// The text with every maximal part that is not well-formed UTF-8 replaced by U+FFFD, as Python's
// errors="replace" does.
std::string to_utf8(std::string_view text);

// Whether all of it is well-formed.
bool is_utf8(std::string_view text);

// Below, texts are well-formed.

// The first character of a text that is not empty, in bytes.
std::size_t first_character(std::string_view text);
// The last one.
std::size_t last_character(std::string_view text);

char32_t code_point(std::string_view character);
void append_utf8(std::string& text, char32_t character);

// Unicode's property White_Space.
bool is_white_space(char32_t character);

enum class normal_form { nfc, nfd, nfkc, nfkd };
std::string to_normal_form(std::string_view text, normal_form form);

// Each character's full lower-case mapping, without regard to its neighbours.
std::string to_lower_case(std::string_view text);

} // namespace ressvd_llm
