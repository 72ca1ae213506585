// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/byte_level.hpp"

#include <array>
#include <cstddef>
#include <cstdint>

#include "tokenizer/utf8.hpp"

namespace ressvd_llm {
namespace {

constexpr bool stands_for_itself(std::size_t byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte != 0xad);
}

// The other bytes get the characters from U+0100 on.
constexpr std::size_t characters = 256 + 68;

constexpr auto character_of_byte = [] {
  std::array<char16_t, 256> table{};
  char16_t next = 256;
  for (std::size_t byte = 0; byte < table.size(); ++byte)
    table[byte] = stands_for_itself(byte) ? static_cast<char16_t>(byte) : next++;
  return table;
}();
static_assert(character_of_byte[0xad] == characters - 1);

constexpr auto byte_of_character = [] {
  std::array<std::int16_t, characters> table{};
  table.fill(-1);
  for (std::size_t byte = 0; byte < 256; ++byte)
    table[character_of_byte[byte]] = static_cast<std::int16_t>(byte);
  return table;
}();

} // namespace

std::string bytes_to_characters(std::string_view bytes) {
  std::string text;
  text.reserve(bytes.size());
  for (const char c : bytes)
    append_utf8(text, character_of_byte[static_cast<unsigned char>(c)]);
  return text;
}

bool append_bytes_of(std::string_view text, std::string& bytes) {
  const std::size_t before = bytes.size();
  while (!text.empty()) {
    const std::size_t length = first_character(text);
    const char32_t character = code_point(text.substr(0, length));
    if (character >= characters || byte_of_character[character] < 0) {
      bytes.resize(before);
      return false;
    }
    bytes += static_cast<char>(static_cast<unsigned char>(byte_of_character[character]));
    text.remove_prefix(length);
  }
  return true;
}

} // namespace ressvd_llm
