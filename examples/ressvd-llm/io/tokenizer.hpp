// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/config.hpp"

namespace ressvd_llm {

class tokenizer {
 public:
  virtual ~tokenizer() = default;

  // Token ids of a text, no beginning-of-sequence token added. Sentencepiece: each line is encoded
  // by itself and the ids are concatenated without separators. Bytes: the bytes. tokenizer.json
  // and GGUF: the text as a whole, each part that is no UTF-8 as U+FFFD.
  virtual std::vector<std::int32_t> encode(std::string_view text) const = 0;

  // The same with line breaks, where encode leaves them out.
  virtual std::vector<std::int32_t> encode_whole(std::string_view text) const {
    return encode(text);
  }

  // Special tokens leave no text.
  virtual std::string decode(std::span<const std::int32_t> ids) const = 0;

  // What the model expects before a prompt, a beginning-of-sequence token or nothing. Absent: the
  // tokenizer does not say.
  virtual std::optional<std::vector<std::int32_t>> prompt_prefix() const { return std::nullopt; }

  // Ids are below this.
  virtual std::int64_t vocab() const = 0;
};

// Bytes where the config says so, otherwise sentencepiece with directory/tokenizer.model, otherwise
// directory/tokenizer.json. Where both files exist, the first is the original: the second was made
// from it. Of a GGUF file, its own. Throws file_error when the model has none of these, or when ids
// could exceed the config's vocabulary.
std::unique_ptr<tokenizer> open_tokenizer(const std::filesystem::path& directory,
                                          const model_config& config);

// What prompts of this model begin with, as its tokenizer says, otherwise its beginning-of-sequence
// token. Qwen's tokenizers add none, and with bytes for tokens everything is text.
std::vector<std::int32_t> prompt_prefix(const model_config& config, const tokenizer& text);

std::unique_ptr<tokenizer> byte_tokenizer();
std::unique_ptr<tokenizer> sentencepiece_tokenizer(const std::filesystem::path& file);
// Hugging Face's tokenizer.json.
std::unique_ptr<tokenizer> json_tokenizer(const std::filesystem::path& file);
std::unique_ptr<tokenizer> gguf_file_tokenizer(const std::filesystem::path& file);

} // namespace ressvd_llm
