// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace ressvd_llm {

struct vocabulary_entry {
  std::string token;
  std::int32_t id = 0;
};

// A byte-pair encoding as a file describes it.
struct bpe_description {
  std::vector<vocabulary_entry> vocabulary = {};
  // Pairs of tokens that merge, the first ones before the others: tokenizer.json, GGUF's "gpt2".
  std::vector<std::pair<std::string, std::string>> merges = {};
  // In place of merges, a score for each entry of the vocabulary: any neighbours merge that make a
  // token, the highest score first (sentencepiece, GGUF's "llama"). -infinity: a token that no text
  // makes, such as control tokens, bytes and the unknown token.
  std::vector<float> scores = {};
  std::optional<std::string> unknown =
      {};                     // for characters without a token; absent: they are dropped
  bool fuse_unknown = false;  // neighbours become one unknown token
  bool byte_fallback = false; // tokens <0x00> to <0xFF> before the unknown one
  bool ignore_merges = false; // a piece that is a token is that token
};

// By texts, found by views of texts.
struct text_hash {
  using is_transparent = void;
  std::size_t operator()(std::string_view text) const {
    return std::hash<std::string_view>()(text);
  }
};
template <class T>
using text_map = std::unordered_map<std::string, T, text_hash, std::equal_to<>>;

// Words that were encoded, so that each is merged once. Bounded.
class word_cache {
 public:
  // Nothing where the word is not known.
  const std::vector<std::int32_t>* find(std::string_view word) const;
  void add(std::string_view word, std::vector<std::int32_t> ids);

 private:
  text_map<std::vector<std::int32_t>> words_;
};

// The merging half of a tokenizer. O(n log n) in the length of a piece.
class bpe {
 public:
  // Throws std::invalid_argument where the description contradicts itself.
  explicit bpe(bpe_description description);

  // Appends the ids of a piece of well-formed UTF-8.
  void encode(std::string_view piece, word_cache& cache, std::vector<std::int32_t>& ids) const;

  std::optional<std::int32_t> id_of(std::string_view token) const;
  // Nothing where no token has the id.
  const std::string* token_of(std::int32_t id) const;
  // Of entries.
  std::size_t size() const { return tokens_.size(); }
  // Above all ids.
  std::int64_t end() const { return end_; }

 private:
  struct symbol;
  struct merge {
    double order; // the lowest merges first
    std::int32_t id;
  };
  void add_merges(const bpe_description& description);
  void add_scores(const bpe_description& description);
  void find_byte_tokens();
  void merge_word(std::string_view word, std::vector<std::int32_t>& ids) const;
  template <class F>
  void merge_all(std::vector<symbol>& symbols, const F& find) const;
  std::vector<symbol> ranked_symbols(std::string_view word) const;
  void encode_scored(std::string_view word, std::vector<std::int32_t>& ids) const;
  bool append_byte_tokens(std::string_view character, std::vector<std::int32_t>& ids) const;

  text_map<std::int32_t> tokens_;
  std::unordered_map<std::int32_t, const std::string*> texts_; // by id
  std::int64_t end_ = 0;
  std::unordered_map<std::uint64_t, merge> merges_; // by the ids of a pair
  text_map<merge> scored_;                          // what neighbours may become
  bool by_score_ = false;
  std::optional<std::int32_t> unknown_;
  bool fuse_unknown_;
  bool byte_fallback_;
  bool ignore_merges_;
  bool words_are_apart_ = false;                // nothing merges across the beginning of a word
  std::array<std::int32_t, 256> byte_tokens_{}; // -1: none
};

} // namespace ressvd_llm
