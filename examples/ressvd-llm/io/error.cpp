// SPDX-License-Identifier: Apache-2.0
#include "io/error.hpp"

namespace ressvd_llm {
namespace {

constexpr std::size_t longest = 200;

std::string escaped(std::string_view text, bool keep_beyond_ascii) {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string line;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f || (byte >= 0x80 && !keep_beyond_ascii)) {
      line += "\\x";
      line += digits[byte >> 4];
      line += digits[byte & 15];
    } else {
      line += c;
    }
  }
  return line;
}

} // namespace

std::string printable(std::string_view text) {
  if (text.size() <= longest) return escaped(text, false);
  return escaped(text.substr(0, longest), false) + "...";
}

file_error::file_error(const std::filesystem::path& file, std::string_view what)
    : std::runtime_error(escaped(file.string(), true) + ": " + std::string(what)) {}

file_error::file_error(const std::filesystem::path& file, std::string_view tensor,
                       std::string_view what)
    : file_error(file, "tensor " + printable(tensor) + ": " + std::string(what)) {}

} // namespace ressvd_llm
