// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/gguf_text.hpp"

#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "io/error.hpp"
#include "tokenizer/utf8.hpp"

namespace ressvd_llm {
namespace {

constexpr const char* word_space = "\xe2\x96\x81";

gguf_token_kind kind_of(const gguf_tokenizer& description, std::size_t token) {
  return description.kinds.empty() ? gguf_token_kind::normal : description.kinds[token];
}

// Vocabulary and added tokens are the same for both kinds.
tokenizer_parts common_parts(const gguf_tokenizer& description) {
  tokenizer_parts parts;
  for (std::size_t i = 0; i < description.tokens.size(); ++i) {
    const std::string& token = description.tokens[i];
    const auto id = static_cast<std::int32_t>(i);
    if (!is_utf8(token)) {
      throw std::invalid_argument("the text of token " + std::to_string(i) + " is not UTF-8");
    }
    parts.model.vocabulary.push_back({token, id});
    const gguf_token_kind kind = kind_of(description, i);
    const bool special = kind == gguf_token_kind::control || kind == gguf_token_kind::unknown;
    if (special || kind == gguf_token_kind::user_defined) {
      parts.added.push_back({.content = token, .id = id, .special = special});
    }
  }
  return parts;
}

void set_prompt_prefix(const gguf_tokenizer& description, bool usual, tokenizer_parts& parts) {
  parts.prompt_prefix.emplace();
  if (!description.add_bos.value_or(usual)) return;
  if (!description.bos) {
    throw std::invalid_argument("tokenizer.ggml.bos_token_id is missing, which prompts begin with");
  }
  parts.prompt_prefix->push_back(*description.bos);
}

tokenizer_parts byte_level_parts(const gguf_tokenizer& description) {
  tokenizer_parts parts = common_parts(description);
  parts.cut = named_pre_tokenizer(description.pre);
  if (!parts.cut) {
    throw std::invalid_argument("the pre-tokenizer '" + printable(description.pre) +
                                "' (tokenizer.ggml.pre) is not supported");
  }
  for (const std::string& merge : description.merges) {
    const std::size_t space = merge.find(' ');
    if (space == std::string::npos || merge.find(' ', space + 1) != std::string::npos) {
      throw std::invalid_argument("'" + printable(merge) +
                                  "' in tokenizer.ggml.merges is no pair of tokens");
    }
    parts.model.merges.emplace_back(merge.substr(0, space), merge.substr(space + 1));
  }
  // What llama.cpp does for Llama 3.
  const bool llama3 = description.pre == "llama-bpe";
  parts.model.ignore_merges = llama3;
  parts.decode = byte_level_decoder();
  set_prompt_prefix(description, llama3, parts);
  return parts;
}

tokenizer_parts sentencepiece_parts(const gguf_tokenizer& description) {
  tokenizer_parts parts = common_parts(description);
  if (description.scores.empty()) {
    throw std::invalid_argument("tokenizer.ggml.scores is missing");
  }
  parts.model.scores = description.scores;
  for (std::size_t i = 0; i < description.tokens.size(); ++i) {
    if (kind_of(description, i) != gguf_token_kind::normal) {
      parts.model.scores[i] = -std::numeric_limits<float>::infinity();
    }
  }
  if (description.unknown) {
    parts.model.unknown = description.tokens[static_cast<std::size_t>(*description.unknown)];
  }
  parts.model.byte_fallback = true;
  const bool prefixed = description.add_space_prefix.value_or(true);
  std::vector<normalizer_pointer> steps;
  if (prefixed) steps.push_back(prepend_normalizer(word_space));
  steps.push_back(replace_normalizer(pattern::literal(" "), word_space));
  parts.normalize = normalizer_sequence(std::move(steps));
  std::vector<decoder_pointer> decoders{replace_decoder(pattern::literal(word_space), " "),
                                        byte_fallback_decoder(), fuse_decoder()};
  if (prefixed) decoders.push_back(strip_decoder(" ", 1, 0));
  parts.decode = decoder_sequence(std::move(decoders));
  set_prompt_prefix(description, true, parts);
  return parts;
}

} // namespace

tokenizer_parts gguf_tokenizer_parts(const std::filesystem::path& file,
                                     const gguf_tokenizer& description) {
  try {
    if (description.model == "gpt2") return byte_level_parts(description);
    if (description.model == "llama") return sentencepiece_parts(description);
  } catch (const std::invalid_argument& error) {
    throw file_error(file, error.what());
  }
  throw file_error(file, "the kind of tokenizer '" + printable(description.model) +
                             "' (tokenizer.ggml.model) is not supported (gpt2 and llama are)");
}

std::unique_ptr<tokenizer> make_gguf_tokenizer(const std::filesystem::path& file,
                                               const gguf_tokenizer& description) {
  tokenizer_parts parts = gguf_tokenizer_parts(file, description);
  try {
    return make_text_tokenizer(std::move(parts));
  } catch (const std::invalid_argument& error) {
    throw file_error(file, error.what());
  }
}

} // namespace ressvd_llm
