// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "io/gguf.hpp"

namespace ressvd_llm {

// Kinds of tokens, as the file numbers them.
enum class gguf_token_kind : std::int32_t {
  undefined,
  normal,
  unknown,
  control,
  user_defined,
  unused,
  byte
};

// The tokenizer in a GGUF file, as it is there.
struct gguf_tokenizer {
  std::string model; // "gpt2": byte-level BPE; "llama": sentencepiece; others
  std::string pre;   // which pre-tokenizer a "gpt2" has; "default" where the file does not say
  std::vector<std::string> tokens;    // token i's text
  std::vector<float> scores;          // of each token, or empty
  std::vector<gguf_token_kind> kinds; // of each token, or empty
  std::vector<std::string> merges;    // "left right", the first first
  std::optional<std::int32_t> bos;
  std::optional<std::int32_t> eos;
  std::optional<std::int32_t> unknown;
  std::optional<std::int32_t> padding;
  std::optional<bool> add_bos; // absent: what is usual for the model
  std::optional<bool> add_eos;
  std::optional<bool> add_space_prefix;
};

// Nothing where the file has no tokenizer ("none"). Throws file_error where its parts do not fit
// each other, for an id outside the tokens, and for an unknown kind of token.
std::optional<gguf_tokenizer> read_gguf_tokenizer(const gguf_metadata& metadata);

// The pairs that say all of it but bos and eos, which belong to the model.
void add_tokenizer(const gguf_tokenizer& tokenizer, gguf_pairs& pairs);

} // namespace ressvd_llm
