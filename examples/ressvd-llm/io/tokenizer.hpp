// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
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
  // by itself and the ids are concatenated without separators. Bytes: the bytes.
  virtual std::vector<std::int32_t> encode(std::string_view text) const = 0;

  virtual std::string decode(std::span<const std::int32_t> ids) const = 0;

  // Ids are below this.
  virtual std::int64_t vocab() const = 0;
};

// Bytes where the config says so, otherwise sentencepiece with directory/tokenizer.model.
// Throws file_error when the model has neither, or when ids could exceed the config's vocabulary.
std::unique_ptr<tokenizer> open_tokenizer(const std::filesystem::path& directory,
                                          const model_config& config);

std::unique_ptr<tokenizer> byte_tokenizer();
std::unique_ptr<tokenizer> sentencepiece_tokenizer(const std::filesystem::path& file);

} // namespace ressvd_llm
