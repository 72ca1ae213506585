// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "tokenizer/normalizer.hpp"

namespace ressvd_llm {

// A token that is found in a text as it stands, before anything is cut or merged.
struct added_token {
  std::string content;
  std::int32_t id = 0;
  bool special = false;     // left out of decoded text
  bool single_word = false; // not within a word
  bool lstrip = false;      // takes the white space before it along
  bool rstrip = false;      // and behind it
  bool normalized = false;  // looked for in the normalised text, normalised as well
};

// Finds added tokens: of those that begin leftmost, the longest.
class added_token_finder {
 public:
  // A part of a text; with an id, a token.
  using part_sink = std::function<void(std::string_view part, std::optional<std::int32_t> id)>;

  // Those tokens that are normalised, or those that are not. Where several have the same content
  // after that, the first special one counts, or the first. Throws std::invalid_argument for a
  // content of more than 4096 bytes, and for more than 1 MiB of all.
  added_token_finder(const std::vector<added_token>& tokens, bool normalized,
                     const normalizer* rewrite);

  void split(std::string_view text, const part_sink& sink) const;

 private:
  struct node {
    std::unordered_map<char, std::size_t> next;
    std::optional<std::size_t> token;
  };

  void insert(std::string_view content, std::size_t token);
  // The longest token at the beginning of the text, and its length there.
  std::optional<std::pair<std::size_t, std::size_t>> match(std::string_view text) const;

  std::vector<added_token> tokens_;
  std::vector<node> nodes_;
  std::array<bool, 256> begins_{}; // bytes that a token begins with
};

} // namespace ressvd_llm
