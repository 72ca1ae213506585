// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/bpe.hpp"

#include <algorithm>
#include <limits>
#include <map>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "llm/io/temporary.hpp"
#include "support/catch.hpp"
#include "tokenizer/text_tokenizer.hpp"

using namespace llm_test;
using ressvd_llm::bpe;
using ressvd_llm::bpe_description;

namespace {

using id_list = std::vector<std::int32_t>;

constexpr float never = -std::numeric_limits<float>::infinity();

id_list encoded(const bpe& model, std::string_view piece) {
  ressvd_llm::word_cache cache;
  id_list ids;
  model.encode(piece, cache, ids);
  return ids;
}

// Of neighbours, again and again the pair that merges first, in O(n^2).
id_list merged_naively(const bpe_description& description, std::string_view word) {
  std::map<std::string, std::int32_t> ids;
  for (const auto& entry : description.vocabulary)
    ids[entry.token] = entry.id;
  std::vector<std::string> symbols;
  for (const char c : word)
    symbols.emplace_back(1, c);
  for (;;) {
    std::size_t best = description.merges.size();
    std::size_t at = 0;
    for (std::size_t i = 0; i + 1 < symbols.size(); ++i) {
      const auto rank = static_cast<std::size_t>(
          std::ranges::find(description.merges, std::pair(symbols[i], symbols[i + 1])) -
          description.merges.begin());
      if (rank < best) {
        best = rank;
        at = i;
      }
    }
    if (best == description.merges.size()) break;
    symbols[at] += symbols[at + 1];
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(at) + 1);
  }
  id_list result;
  for (const std::string& symbol : symbols)
    result.push_back(ids.at(symbol));
  return result;
}

// Letters a to d, and merges of what is there already, each making a token of its own.
bpe_description random_description(std::mt19937& engine) {
  bpe_description description;
  std::vector<std::string> tokens{"a", "b", "c", "d"};
  for (int tries = 0; tries < 40; ++tries) {
    const auto pair = std::pair(tokens[engine() % tokens.size()], tokens[engine() % tokens.size()]);
    const std::string both = pair.first + pair.second;
    if (std::ranges::find(tokens, both) != tokens.end()) continue;
    description.merges.push_back(pair);
    tokens.push_back(both);
  }
  for (const std::string& token : tokens)
    description.vocabulary.push_back(
        {token, static_cast<std::int32_t>(tokens.size()) -
                    static_cast<std::int32_t>(description.vocabulary.size())});
  return description;
}

} // namespace

TEST_CASE("the heap merges as repeated search does", "[bpe]") {
  std::mt19937 engine(1);
  for (int round = 0; round < 50; ++round) {
    const bpe_description description = random_description(engine);
    const bpe model(description);
    for (int i = 0; i < 20; ++i) {
      std::string word;
      for (std::size_t length = engine() % 30; word.size() < length;)
        word += static_cast<char>('a' + static_cast<char>(engine() % 4));
      CHECK(encoded(model, word) == merged_naively(description, word));
    }
  }
}

TEST_CASE("a word's ids do not depend on what was encoded before", "[bpe]") {
  std::mt19937 engine(2);
  const bpe model(random_description(engine));
  ressvd_llm::word_cache cache;
  for (int i = 0; i < 200'000; ++i) {
    const std::string word = {static_cast<char>('a' + engine() % 4),
                              static_cast<char>('a' + engine() % 4)};
    std::string longer = std::to_string(i) + word; // more words than the cache holds
    for (char& c : longer)
      c = c < 'a' ? static_cast<char>('a' + (c - '0') % 4) : c;
    id_list ids;
    model.encode(longer, cache, ids);
    if (i % 1000 == 0) CHECK(ids == encoded(model, longer));
  }
}

TEST_CASE("a long word is merged in little time", "[bpe]") {
  bpe_description description;
  std::string token = "a";
  description.vocabulary.push_back({token, 0});
  for (int i = 1; i < 16; ++i) {
    description.merges.emplace_back(token, token);
    token += token;
    description.vocabulary.push_back({token, i});
  }
  const bpe model(description);
  CHECK(encoded(model, std::string(std::size_t{1} << 20, 'a')) == id_list(32, 15));
}

TEST_CASE("merging by scores gives sentencepiece's ids", "[bpe]") {
  const auto file = nlohmann::json::parse(
      read(std::filesystem::path(RESSVD_LLM_FIXTURES) / "tokenizers" / "pieces.json"));
  ressvd_llm::tokenizer_parts parts;
  for (const auto& piece : file["pieces"]) {
    const auto id = static_cast<std::int32_t>(parts.model.vocabulary.size());
    parts.model.vocabulary.push_back({piece[0].get<std::string>(), id});
    parts.model.scores.push_back(piece[1].is_null() ? never : piece[1].get<float>());
  }
  parts.model.byte_fallback = true;
  parts.model.unknown = "<unk>";
  parts.normalize = ressvd_llm::normalizer_sequence(
      {ressvd_llm::prepend_normalizer("\xe2\x96\x81"),
       ressvd_llm::replace_normalizer(ressvd_llm::pattern::literal(" "), "\xe2\x96\x81")});
  const auto tokenizer = ressvd_llm::make_text_tokenizer(std::move(parts));
  CHECK_FALSE(tokenizer->prompt_prefix());
  REQUIRE(file["texts"].size() > 10);
  for (std::size_t i = 0; i < file["texts"].size(); ++i) {
    const auto text = file["texts"][i].get<std::string>();
    INFO(text);
    CHECK(tokenizer->encode(text) == file["ids"][i].get<id_list>());
  }
}

TEST_CASE("the highest score merges first, then the leftmost", "[bpe]") {
  bpe_description description{
      .vocabulary = {{"a", 0}, {"b", 1}, {"ab", 2}, {"ba", 3}, {"<unk>", 4}, {"xy", 5}},
      .scores = {0, 0, -1, -2, never, 0},
      .unknown = "<unk>"};
  CHECK(encoded(bpe(description), "bab") == id_list{1, 2});
  CHECK(encoded(bpe(description), "<unk>").size() == 5);    // no text makes it
  CHECK(encoded(bpe(description), "xyx") == id_list{5, 4}); // of letters that are no tokens
  description.scores = {0, 0, -1, -1, never, 0};
  CHECK(encoded(bpe(description), "bab") == id_list{3, 1});
  description.fuse_unknown = true;
  CHECK(encoded(bpe(description), "zzaz") == id_list{4, 0, 4});
  description.scores[0] = std::numeric_limits<float>::quiet_NaN();
  CHECK_THAT(message_of<std::invalid_argument>([&] { bpe model(description); }),
             contains_text("'a' has no number for a score"));
  description.scores.pop_back();
  CHECK_THAT(message_of<std::invalid_argument>([&] { bpe model(description); }),
             contains_text("5 scores and 0 merges for 6 tokens"));
}

TEST_CASE("descriptions that contradict themselves are refused", "[bpe]") {
  const auto refusal = [](const bpe_description& description) {
    return message_of<std::invalid_argument>([&] { bpe model(description); });
  };
  CHECK_THAT(refusal({.vocabulary = {{"a", 0}, {"a", 1}}}), contains_text("'a' occurs twice"));
  CHECK_THAT(refusal({.vocabulary = {{"a", 0}, {"b", 0}}}), contains_text("have the id 0"));
  CHECK_THAT(refusal({.vocabulary = {{"a", -1}}}), contains_text("has the id -1"));
  CHECK_THAT(refusal({.vocabulary = {{"a", 0}}, .unknown = "b"}),
             contains_text("is not in the vocabulary"));
  CHECK_THAT(refusal({.vocabulary = {{"a", 0}}, .merges = {{"a", "a"}}}),
             contains_text("needs the token 'aa'"));
}
