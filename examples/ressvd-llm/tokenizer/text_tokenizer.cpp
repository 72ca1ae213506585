// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/text_tokenizer.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "io/error.hpp"
#include "tokenizer/utf8.hpp"

namespace ressvd_llm {
namespace {

class text_tokenizer final : public tokenizer {
 public:
  explicit text_tokenizer(tokenizer_parts parts)
      : normalize_(std::move(parts.normalize)),
        cut_(std::move(parts.cut)),
        model_(std::move(parts.model)),
        decode_(std::move(parts.decode)),
        prompt_prefix_(std::move(parts.prompt_prefix)),
        plain_(parts.added, false, nullptr),
        normalized_(parts.added, true, normalize_.get()),
        end_(model_.end()) {
    std::unordered_set<std::string_view> contents;
    for (const added_token& token : parts.added) {
      if (token.content.empty()) throw std::invalid_argument("an added token is empty");
      if (token.id < 0) fail(token, "has the id " + std::to_string(token.id));
      const auto usual = model_.id_of(token.content);
      const std::string* const text = model_.token_of(token.id);
      if ((usual && *usual != token.id) || (text != nullptr && *text != token.content)) {
        fail(token, "has the id " + std::to_string(token.id) + ", unlike in the vocabulary");
      }
      if (!contents.insert(token.content).second) fail(token, "occurs twice");
      // The package decodes what it looks for.
      const bool rewritten = token.normalized && normalize_;
      const decoded_token decoded{rewritten ? normalize_->normalize(token.content) : token.content,
                                  token.special};
      if (!added_.try_emplace(token.id, decoded).second) {
        fail(token, "has the id " + std::to_string(token.id) + ", as another has");
      }
      end_ = std::max(end_, std::int64_t{token.id} + 1);
    }
    if (end_ == 0) throw std::invalid_argument("there are no tokens");
    for (const std::int32_t id : prompt_prefix_.value_or(std::vector<std::int32_t>())) {
      if (id < 0 || id >= end_) {
        throw std::invalid_argument("the template has the id " + std::to_string(id) +
                                    ", which no token has");
      }
    }
  }

  std::vector<std::int32_t> encode(std::string_view bytes) const override {
    const std::string text = to_utf8(bytes);
    std::vector<std::int32_t> ids;
    word_cache cache;
    const pre_tokenizer::piece_sink merge = [&](std::string_view piece, bool) {
      model_.encode(piece, cache, ids);
    };
    plain_.split(text, [&](std::string_view part, std::optional<std::int32_t> id) {
      if (id) return ids.push_back(*id);
      encode_part(part, part.data() == text.data(), ids, merge);
    });
    return ids;
  }

  std::string decode(std::span<const std::int32_t> ids) const override {
    std::vector<std::string> tokens;
    for (const std::int32_t id : ids) {
      if (id < 0) throw std::invalid_argument("token id " + std::to_string(id) + " is negative");
      const auto added = added_.find(id);
      if (added != added_.end()) {
        if (!added->second.special) tokens.push_back(added->second.text);
      } else if (const std::string* const token = model_.token_of(id)) {
        tokens.push_back(*token);
      }
    }
    const std::string_view between = decode_ ? "" : " ";
    if (decode_) tokens = decode_->decode(std::move(tokens));
    std::string text;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      if (i > 0) text += between;
      text += tokens[i];
    }
    return text;
  }

  std::int64_t vocab() const override { return end_; }

  std::optional<std::vector<std::int32_t>> prompt_prefix() const override { return prompt_prefix_; }

 private:
  struct decoded_token {
    std::string text;
    bool special;
  };

  [[noreturn]] static void fail(const added_token& token, const std::string& what) {
    throw std::invalid_argument("the added token '" + printable(token.content) + "' " + what);
  }

  // What lies between the tokens that are found in the text itself.
  void encode_part(std::string_view part, bool at_start, std::vector<std::int32_t>& ids,
                   const pre_tokenizer::piece_sink& merge) const {
    std::string rewritten;
    if (normalize_) {
      rewritten = normalize_->normalize(part);
      part = rewritten;
    }
    normalized_.split(part, [&](std::string_view piece, std::optional<std::int32_t> id) {
      if (id) return ids.push_back(*id);
      const bool starts = at_start && piece.data() == part.data();
      if (cut_) {
        cut_->split(piece, starts, merge);
      } else {
        merge(piece, starts);
      }
    });
  }

  normalizer_pointer normalize_;
  pre_tokenizer_pointer cut_;
  bpe model_;
  decoder_pointer decode_;
  std::optional<std::vector<std::int32_t>> prompt_prefix_;
  added_token_finder plain_;
  added_token_finder normalized_;
  std::unordered_map<std::int32_t, decoded_token> added_; // by id
  std::int64_t end_;
};

} // namespace

std::unique_ptr<tokenizer> make_text_tokenizer(tokenizer_parts parts) {
  return std::make_unique<text_tokenizer>(std::move(parts));
}

} // namespace ressvd_llm
