// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "io/tokenizer.hpp"
#include "tokenizer/added_tokens.hpp"
#include "tokenizer/bpe.hpp"
#include "tokenizer/decoder.hpp"
#include "tokenizer/normalizer.hpp"
#include "tokenizer/pre_tokenizer.hpp"

namespace ressvd_llm {

// What a tokenizer is made of, whatever file describes it. A text goes from the top down.
struct tokenizer_parts {
  std::vector<added_token> added; // ids beyond the vocabulary's or of its entries
  normalizer_pointer normalize;   // none: texts stay as they are
  pre_tokenizer_pointer cut;      // none: one piece
  bpe_description model;
  decoder_pointer decode; // none: tokens with spaces between them
  // What the model's template puts before a prompt; absent: not known.
  std::optional<std::vector<std::int32_t>> prompt_prefix;
};

// A text that is no UTF-8 is taken as to_utf8 makes it. Ids without a token leave no text, since
// models may have more ids than tokenizers. Throws std::invalid_argument where the parts contradict
// each other.
std::unique_ptr<tokenizer> make_text_tokenizer(tokenizer_parts parts);

} // namespace ressvd_llm
