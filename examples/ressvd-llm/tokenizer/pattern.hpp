// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace ressvd_llm {

// What a text is searched for: a string, or a regular expression in Oniguruma's syntax, run by
// PCRE2. Matches have limits: file_error, which names the file that the pattern comes from, rather
// than a search without end.
class pattern {
 public:
  // Receives the parts of a text in their order, without gaps. A part may be empty.
  using part_sink = std::function<void(std::string_view part, bool matched)>;

  static pattern literal(std::string text);
  // Throws file_error where the expression is not understood or means something else to PCRE2.
  static pattern regex(const std::filesystem::path& file, std::string_view expression);

  // The matches, from left to right without overlap, and what lies between them.
  void split(std::string_view text, const part_sink& sink) const;

  // The text with the content in place of every match. Throws as require_growth does.
  std::string replace(std::string_view text, std::string_view content) const;

 private:
  class compiled;

  pattern() = default;

  std::string literal_;
  std::shared_ptr<const compiled> regex_; // none: the literal
};

// Files may ask for steps that make texts longer and longer. Throws usage_error where a text of
// this size has become more than 64 times as long.
void require_growth(std::size_t original, std::size_t size);

} // namespace ressvd_llm
