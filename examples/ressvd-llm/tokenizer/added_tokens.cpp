// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/added_tokens.hpp"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "io/error.hpp"
#include "tokenizer/utf8.hpp"

namespace ressvd_llm {
namespace {

constexpr std::size_t longest_content = 4096;
constexpr std::size_t most_nodes = 1'048'576;

bool is_word_character(std::string_view character) {
  // Rust's \w.
  static const pattern word = pattern::regex("words", R"([\w\x{200c}\x{200d}])");
  bool found = false;
  word.split(character, [&](std::string_view, bool matched) { found = found || matched; });
  return found;
}

bool ends_with_word(std::string_view text) {
  return !text.empty() && is_word_character(text.substr(text.size() - last_character(text)));
}

bool starts_with_word(std::string_view text) {
  return !text.empty() && is_word_character(text.substr(0, first_character(text)));
}

std::string_view without_space_at_end(std::string_view text) {
  while (!text.empty()) {
    const std::size_t length = last_character(text);
    if (!is_white_space(code_point(text.substr(text.size() - length)))) break;
    text.remove_suffix(length);
  }
  return text;
}

std::size_t space_at_start(std::string_view text) {
  std::size_t length = 0;
  while (length < text.size()) {
    const std::size_t next = first_character(text.substr(length));
    if (!is_white_space(code_point(text.substr(length, next)))) break;
    length += next;
  }
  return length;
}

} // namespace

added_token_finder::added_token_finder(const std::vector<added_token>& tokens, bool normalized,
                                       const normalizer* rewrite) {
  nodes_.emplace_back();
  for (const bool special : {true, false}) {
    for (const added_token& token : tokens) {
      if (token.special != special || token.normalized != normalized) continue;
      if (token.content.size() > longest_content) {
        throw std::invalid_argument("the added token '" + printable(token.content) + "' has " +
                                    std::to_string(token.content.size()) + " bytes");
      }
      const std::string content =
          normalized && rewrite != nullptr ? rewrite->normalize(token.content) : token.content;
      if (content.empty()) continue;
      insert(content, tokens_.size());
      tokens_.push_back(token);
    }
  }
}

void added_token_finder::insert(std::string_view content, std::size_t token) {
  begins_[static_cast<unsigned char>(content[0])] = true;
  std::size_t at = 0;
  for (const char c : content) {
    const auto [next, is_new] = nodes_[at].next.emplace(c, nodes_.size());
    at = next->second;
    if (is_new) nodes_.emplace_back();
  }
  if (nodes_.size() > most_nodes) {
    throw std::invalid_argument("the added tokens have more than 1048576 bytes");
  }
  if (!nodes_[at].token) nodes_[at].token = token;
}

std::optional<std::pair<std::size_t, std::size_t>> added_token_finder::match(
    std::string_view text) const {
  std::optional<std::pair<std::size_t, std::size_t>> longest;
  std::size_t at = 0;
  for (std::size_t length = 1; length <= text.size(); ++length) {
    const auto next = nodes_[at].next.find(text[length - 1]);
    if (next == nodes_[at].next.end()) break;
    at = next->second;
    if (nodes_[at].token) longest = {*nodes_[at].token, length};
  }
  return longest;
}

void added_token_finder::split(std::string_view text, const part_sink& sink) const {
  std::size_t done = 0; // handed on up to here
  std::size_t at = 0;
  while (at < text.size()) {
    if (!begins_[static_cast<unsigned char>(text[at])]) {
      ++at;
      continue;
    }
    const auto found = match(text.substr(at));
    if (!found) {
      ++at;
      continue;
    }
    const added_token& token = tokens_[found->first];
    std::size_t begin = at;
    std::size_t end = at + found->second;
    at = end;
    if (token.single_word &&
        (ends_with_word(text.substr(0, begin)) || starts_with_word(text.substr(end)))) {
      continue;
    }
    if (token.lstrip) {
      begin = std::max(without_space_at_end(text.substr(0, begin)).size(), done);
    }
    if (token.rstrip) end += space_at_start(text.substr(end));
    if (begin >= end) continue; // white space that the token before took along
    if (done < begin) sink(text.substr(done, begin - done), std::nullopt);
    sink(text.substr(begin, end - begin), token.id);
    done = end;
  }
  if (done < text.size()) sink(text.substr(done), std::nullopt);
}

} // namespace ressvd_llm
