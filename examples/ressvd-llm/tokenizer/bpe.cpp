// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/bpe.hpp"

#include <algorithm>
#include <cmath>
#include <queue>
#include <stdexcept>

#include "io/error.hpp"
#include "tokenizer/utf8.hpp"

namespace ressvd_llm {
namespace {

// Sentencepiece's space.
constexpr std::string_view word_mark = "\xe2\x96\x81";

constexpr std::size_t most_cached_words = 65'536;
constexpr std::size_t longest_cached_word = 256;

std::uint64_t pair_key(std::int32_t left, std::int32_t right) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 |
         static_cast<std::uint32_t>(right);
}

// Where a word begins behind something else.
std::size_t next_word(std::string_view text) {
  std::size_t at = text.find(word_mark, 1);
  while (at != std::string_view::npos && text.substr(0, at).ends_with(word_mark))
    at = text.find(word_mark, at + word_mark.size());
  return std::min(at, text.size());
}

std::string shown_token(std::string_view token) {
  return "'" + printable(token) + "'";
}

} // namespace

const std::vector<std::int32_t>* word_cache::find(std::string_view word) const {
  if (word.size() > longest_cached_word) return nullptr;
  const auto found = words_.find(word);
  return found == words_.end() ? nullptr : &found->second;
}

void word_cache::add(std::string_view word, std::vector<std::int32_t> ids) {
  if (word.size() > longest_cached_word) return;
  if (words_.size() >= most_cached_words) words_.clear();
  words_.emplace(word, std::move(ids));
}

// A part of a word on its way to a token, in a list of its neighbours. Where characters were
// dropped or overtaken, only the size of `text` is right; it is read for scores alone, which do
// neither.
struct bpe::symbol {
  std::int32_t id = 0;
  std::ptrdiff_t previous = -1;
  std::ptrdiff_t next = -1;
  std::string_view text; // empty: merged into another
};

bpe::bpe(bpe_description description)
    : fuse_unknown_(description.fuse_unknown),
      byte_fallback_(description.byte_fallback),
      ignore_merges_(description.ignore_merges) {
  tokens_.reserve(description.vocabulary.size());
  texts_.reserve(description.vocabulary.size());
  for (const vocabulary_entry& entry : description.vocabulary) {
    const auto [token, is_new] = tokens_.emplace(entry.token, entry.id);
    if (!is_new)
      throw std::invalid_argument("the token " + shown_token(entry.token) + " occurs twice");
    if (entry.id < 0) {
      throw std::invalid_argument("the token " + shown_token(entry.token) + " has the id " +
                                  std::to_string(entry.id));
    }
    if (!texts_.emplace(entry.id, &token->first).second) {
      throw std::invalid_argument("two tokens have the id " + std::to_string(entry.id));
    }
    end_ = std::max(end_, std::int64_t{entry.id} + 1);
  }
  if (description.unknown) {
    unknown_ = id_of(*description.unknown);
    if (!unknown_) {
      throw std::invalid_argument("the unknown token " + shown_token(*description.unknown) +
                                  " is not in the vocabulary");
    }
  }
  by_score_ = !description.scores.empty();
  if (by_score_) {
    add_scores(description);
  } else {
    add_merges(description);
  }
  find_byte_tokens();
  // A piece may have to be looked up as a whole, and dropped characters leave others as neighbours.
  const bool has_all_bytes =
      byte_fallback_ && std::ranges::none_of(byte_tokens_, [](std::int32_t id) { return id < 0; });
  if (ignore_merges_ || (!unknown_ && !has_all_bytes)) words_are_apart_ = false;
}

void bpe::add_merges(const bpe_description& description) {
  words_are_apart_ = tokens_.contains(word_mark);
  merges_.reserve(description.merges.size());
  std::string both;
  double rank = 0;
  for (const auto& pair : description.merges) {
    const std::string& left = pair.first;
    const std::string& right = pair.second;
    both.assign(left).append(right);
    const auto id = [&](const std::string& token) {
      const auto found = tokens_.find(token);
      if (found == tokens_.end()) {
        throw std::invalid_argument("the merge of " + shown_token(left) + " and " +
                                    shown_token(right) + " needs the token " + shown_token(token) +
                                    ", which is not in the vocabulary");
      }
      return found->second;
    };
    const std::int32_t left_id = id(left);
    const std::int32_t right_id = id(right);
    merges_.insert_or_assign(pair_key(left_id, right_id), merge{rank++, id(both)});
    if (right.starts_with(word_mark) && !left.ends_with(word_mark)) words_are_apart_ = false;
  }
}

void bpe::add_scores(const bpe_description& description) {
  if (description.scores.size() != description.vocabulary.size() || !description.merges.empty()) {
    throw std::invalid_argument("there are " + std::to_string(description.scores.size()) +
                                " scores and " + std::to_string(description.merges.size()) +
                                " merges for " + std::to_string(description.vocabulary.size()) +
                                " tokens");
  }
  words_are_apart_ = true;
  for (std::size_t i = 0; i < description.scores.size(); ++i) {
    const vocabulary_entry& entry = description.vocabulary[i];
    const float score = description.scores[i];
    if (std::isnan(score)) {
      throw std::invalid_argument("the token " + shown_token(entry.token) +
                                  " has no number for a score");
    }
    if (std::isinf(score) && score < 0) continue;
    scored_.emplace(entry.token, merge{-static_cast<double>(score), entry.id});
    if (!entry.token.empty() && next_word(entry.token) < entry.token.size()) {
      words_are_apart_ = false;
    }
  }
  words_are_apart_ = words_are_apart_ && scored_.contains(word_mark);
}

void bpe::find_byte_tokens() {
  constexpr std::string_view digits = "0123456789ABCDEF";
  for (std::size_t byte = 0; byte < byte_tokens_.size(); ++byte) {
    const std::string token = {'<', '0', 'x', digits[byte >> 4], digits[byte & 15], '>'};
    byte_tokens_[byte] = id_of(token).value_or(-1);
  }
}

std::optional<std::int32_t> bpe::id_of(std::string_view token) const {
  const auto found = tokens_.find(token);
  if (found == tokens_.end()) return std::nullopt;
  return found->second;
}

const std::string* bpe::token_of(std::int32_t id) const {
  const auto found = texts_.find(id);
  return found == texts_.end() ? nullptr : found->second;
}

void bpe::encode(std::string_view piece, word_cache& cache, std::vector<std::int32_t>& ids) const {
  while (!piece.empty()) {
    const std::string_view word = words_are_apart_ ? piece.substr(0, next_word(piece)) : piece;
    piece.remove_prefix(word.size());
    if (const auto* known = cache.find(word)) {
      ids.insert(ids.end(), known->begin(), known->end());
      continue;
    }
    std::vector<std::int32_t> word_ids;
    if (const auto id = ignore_merges_ ? id_of(word) : std::nullopt) {
      word_ids.push_back(*id);
    } else if (by_score_) {
      encode_scored(word, word_ids);
    } else {
      merge_word(word, word_ids);
    }
    ids.insert(ids.end(), word_ids.begin(), word_ids.end());
    cache.add(word, std::move(word_ids));
  }
}

// `find` gives what two neighbours become, or nothing.
template <class F>
void bpe::merge_all(std::vector<symbol>& symbols, const F& find) const {
  struct candidate {
    double order;
    std::size_t left;
    std::int32_t id;
    bool operator<(const candidate& other) const { // std::priority_queue has the greatest first
      return order != other.order ? order > other.order : left > other.left;
    }
  };
  std::vector<candidate> first;
  for (std::size_t i = 0; i + 1 < symbols.size(); ++i) {
    if (const merge* found = find(symbols[i], symbols[i + 1])) {
      first.push_back({found->order, i, found->id});
    }
  }
  std::priority_queue<candidate> candidates({}, std::move(first));
  const auto propose = [&](std::ptrdiff_t left, std::ptrdiff_t right) {
    if (left < 0 || right < 0) return;
    const auto l = static_cast<std::size_t>(left);
    if (const merge* found = find(symbols[l], symbols[static_cast<std::size_t>(right)])) {
      candidates.push({found->order, l, found->id});
    }
  };
  while (!candidates.empty()) {
    const candidate top = candidates.top();
    candidates.pop();
    symbol& left = symbols[top.left];
    if (left.text.empty() || left.next < 0) continue;
    symbol& right = symbols[static_cast<std::size_t>(left.next)];
    // One of the two may have changed since.
    const merge* const found = find(left, right);
    if (found == nullptr || found->id != top.id) continue;
    left.id = top.id;
    left.text = {left.text.data(), left.text.size() + right.text.size()};
    left.next = right.next;
    right.text = {};
    const auto at = static_cast<std::ptrdiff_t>(top.left);
    if (left.next >= 0) symbols[static_cast<std::size_t>(left.next)].previous = at;
    propose(left.previous, at);
    propose(at, left.next);
  }
}

bool bpe::append_byte_tokens(std::string_view character, std::vector<std::int32_t>& ids) const {
  const auto token = [&](char c) { return byte_tokens_[static_cast<unsigned char>(c)]; };
  if (!byte_fallback_ || std::ranges::any_of(character, [&](char c) { return token(c) < 0; })) {
    return false;
  }
  for (const char c : character)
    ids.push_back(token(c));
  return true;
}

std::vector<bpe::symbol> bpe::ranked_symbols(std::string_view word) const {
  std::vector<symbol> symbols;
  symbols.reserve(word.size());
  const auto add = [&](std::int32_t id, std::string_view text) {
    symbols.push_back({.id = id, .text = text});
  };
  // The unknown token waits for what follows it. That bytes overtake it is the package's way.
  std::string_view waiting;
  const auto flush = [&] {
    if (!waiting.empty()) add(*unknown_, waiting);
    waiting = {};
  };
  std::vector<std::int32_t> bytes;
  while (!word.empty()) {
    const std::string_view character = word.substr(0, first_character(word));
    word.remove_prefix(character.size());
    bytes.clear();
    if (const auto id = id_of(character)) {
      flush();
      add(*id, character);
    } else if (append_byte_tokens(character, bytes)) {
      for (std::size_t i = 0; i < bytes.size(); ++i)
        add(bytes[i], character.substr(i, 1));
    } else if (unknown_) {
      if (!fuse_unknown_) flush();
      waiting = character;
    }
  }
  flush();
  for (std::size_t i = 0; i < symbols.size(); ++i) {
    symbols[i].previous = static_cast<std::ptrdiff_t>(i) - 1;
    symbols[i].next = i + 1 < symbols.size() ? static_cast<std::ptrdiff_t>(i) + 1 : -1;
  }
  return symbols;
}

void bpe::merge_word(std::string_view word, std::vector<std::int32_t>& ids) const {
  std::vector<symbol> symbols = ranked_symbols(word);
  merge_all(symbols, [&](const symbol& left, const symbol& right) -> const merge* {
    const auto found = merges_.find(pair_key(left.id, right.id));
    return found == merges_.end() ? nullptr : &found->second;
  });
  for (const symbol& s : symbols) {
    if (!s.text.empty()) ids.push_back(s.id);
  }
}

void bpe::encode_scored(std::string_view word, std::vector<std::int32_t>& ids) const {
  std::vector<symbol> symbols;
  symbols.reserve(word.size());
  while (!word.empty()) {
    const std::string_view character = word.substr(0, first_character(word));
    word.remove_prefix(character.size());
    const auto at = static_cast<std::ptrdiff_t>(symbols.size());
    symbols.push_back(
        {.id = -1, .previous = at - 1, .next = word.empty() ? -1 : at + 1, .text = character});
  }
  merge_all(symbols, [&](const symbol& left, const symbol& right) -> const merge* {
    // Neighbours are neighbours in the word's memory, too.
    const auto found =
        scored_.find(std::string_view(left.text.data(), left.text.size() + right.text.size()));
    return found == scored_.end() ? nullptr : &found->second;
  });
  bool after_unknown = false;
  for (const symbol& s : symbols) {
    if (s.text.empty()) continue;
    const auto found = scored_.find(s.text);
    const bool known = found != scored_.end();
    if (known) {
      ids.push_back(found->second.id);
    } else if (!append_byte_tokens(s.text, ids) && unknown_) {
      if (!fuse_unknown_ || !after_unknown) ids.push_back(*unknown_);
      after_unknown = true;
      continue;
    }
    after_unknown = false;
  }
}

} // namespace ressvd_llm
