// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "io/gguf_tokenizer.hpp"

namespace ressvd_llm {

struct sentencepiece_piece {
  std::string text;
  float score = 0;
  gguf_token_kind kind = gguf_token_kind::normal; // the two formats number them alike
};

// What tokenizer.model says of itself beyond what sentencepiece's interface tells.
struct sentencepiece_content {
  std::vector<sentencepiece_piece> pieces; // piece i has the id i
  bool is_bpe = false;
  bool normalizes = false;
  bool adds_space = true;
  bool removes_spaces = true;
};

// Throws file_error where the text is not such a file.
sentencepiece_content read_sentencepiece(const std::filesystem::path& file, std::string_view text);

} // namespace ressvd_llm
