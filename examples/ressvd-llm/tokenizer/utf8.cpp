// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/utf8.hpp"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>

#include <utf8proc.h>

namespace ressvd_llm {
namespace {

constexpr std::string_view replacement_character = "\xef\xbf\xbd";

// What a text begins with: a character, or the longest beginning of one that goes wrong.
struct utf8_front {
  std::size_t length;
  bool well_formed;
};

utf8_front front_of(std::string_view text) {
  const auto byte = [&](std::size_t i) {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u;
  };
  const unsigned lead = byte(0);
  if (lead < 0x80) return {1, true};
  if (lead < 0xc2 || lead > 0xf4) return {1, false};
  const std::size_t length = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  // The second byte tells overlong forms, surrogates and what lies beyond U+10FFFF.
  unsigned low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
  unsigned high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
  for (std::size_t i = 1; i < length; ++i) {
    if (byte(i) < low || byte(i) > high) return {i, false};
    low = 0x80;
    high = 0xbf;
  }
  return {length, true};
}

bool is_ascii(std::string_view text) {
  return std::ranges::all_of(text, [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

} // namespace

std::string to_utf8(std::string_view text) {
  std::string clean;
  clean.reserve(text.size());
  while (!text.empty()) {
    const utf8_front front = front_of(text);
    clean += front.well_formed ? text.substr(0, front.length) : replacement_character;
    text.remove_prefix(front.length);
  }
  return clean;
}

bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const utf8_front front = front_of(text);
    if (!front.well_formed) return false;
    text.remove_prefix(front.length);
  }
  return true;
}

std::size_t first_character(std::string_view text) {
  const auto lead = static_cast<unsigned char>(text[0]);
  return lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
}

std::size_t last_character(std::string_view text) {
  std::size_t length = 1;
  while ((static_cast<unsigned char>(text[text.size() - length]) & 0xc0) == 0x80)
    ++length;
  return length;
}

char32_t code_point(std::string_view character) {
  const auto lead = static_cast<unsigned char>(character[0]);
  char32_t value = character.size() == 1 ? lead : lead & (0x7fu >> character.size());
  for (const char c : character.substr(1))
    value = value << 6 | (static_cast<unsigned char>(c) & 0x3f);
  return value;
}

void append_utf8(std::string& text, char32_t character) {
  const auto add = [&](char32_t byte) {
    text += static_cast<char>(static_cast<unsigned char>(byte));
  };
  const auto rest = [&](int shift) { add(0x80 | (character >> shift & 0x3f)); };
  if (character < 0x80) {
    add(character);
  } else if (character < 0x800) {
    add(0xc0 | character >> 6);
    rest(0);
  } else if (character < 0x10000) {
    add(0xe0 | character >> 12);
    rest(6);
    rest(0);
  } else {
    add(0xf0 | character >> 18);
    rest(12);
    rest(6);
    rest(0);
  }
}

bool is_white_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0d) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f ||
         c == 0x3000;
}

std::string to_normal_form(std::string_view text, normal_form form) {
  if (is_ascii(text)) return std::string(text);
  const bool composed = form == normal_form::nfc || form == normal_form::nfkc;
  const bool compatible = form == normal_form::nfkc || form == normal_form::nfkd;
  const int options = UTF8PROC_STABLE | (composed ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE) |
                      (compatible ? UTF8PROC_COMPAT : 0);
  utf8proc_uint8_t* result = nullptr;
  const utf8proc_ssize_t length = utf8proc_map(
      reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
      static_cast<utf8proc_ssize_t>(text.size()), &result, static_cast<utf8proc_option_t>(options));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(result, &std::free);
  if (length == UTF8PROC_ERROR_NOMEM) throw std::bad_alloc();
  if (length < 0) {
    throw std::runtime_error(std::string("normalisation failed: ") + utf8proc_errmsg(length));
  }
  return {reinterpret_cast<const char*>(result), static_cast<std::size_t>(length)};
}

std::string to_lower_case(std::string_view text) {
  // The only character whose lower case is several.
  constexpr char32_t dotted_i = 0x130;
  std::string lower;
  lower.reserve(text.size());
  while (!text.empty()) {
    const std::size_t length = first_character(text);
    const char32_t character = code_point(text.substr(0, length));
    if (character == dotted_i) {
      lower += "i\xcc\x87";
    } else {
      append_utf8(
          lower, static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(character))));
    }
    text.remove_prefix(length);
  }
  return lower;
}

} // namespace ressvd_llm
