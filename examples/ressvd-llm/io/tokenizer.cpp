// SPDX-License-Identifier: Apache-2.0
#include "io/tokenizer.hpp"

#include <algorithm>
#include <stdexcept>

#include <sentencepiece_processor.h>

#include "io/error.hpp"
#include "io/gguf.hpp"
#include "io/gguf_tokenizer.hpp"
#include "io/mapped_file.hpp"
#include "io/paths.hpp"
#include "tokenizer/gguf_text.hpp"
#include "tokenizer/tokenizer_json.hpp"

namespace ressvd_llm {
namespace {

constexpr std::uint64_t largest_tokenizer = 268'435'456;

void require_ids(std::span<const std::int32_t> ids, std::int64_t vocab) {
  for (const std::int32_t id : ids) {
    if (id < 0 || id >= vocab) {
      throw std::invalid_argument("token id " + std::to_string(id) +
                                  " is outside the tokenizer's " + std::to_string(vocab));
    }
  }
}

void require_vocabulary(const std::filesystem::path& file, const tokenizer& model,
                        const model_config& config) {
  if (model.vocab() <= config.vocab) return;
  throw file_error(file, "has " + std::to_string(model.vocab()) +
                             " tokens, more than the model's vocabulary of " +
                             std::to_string(config.vocab));
}

class bytes final : public tokenizer {
 public:
  std::vector<std::int32_t> encode(std::string_view text) const override {
    std::vector<std::int32_t> ids;
    ids.reserve(text.size());
    for (const char c : text)
      ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }

  std::string decode(std::span<const std::int32_t> ids) const override {
    require_ids(ids, vocab());
    std::string text;
    for (const std::int32_t id : ids)
      text += static_cast<char>(static_cast<unsigned char>(id));
    return text;
  }

  std::int64_t vocab() const override { return 256; }
};

class sentencepiece_model final : public tokenizer {
 public:
  explicit sentencepiece_model(const std::filesystem::path& file) {
    const auto status = processor_.LoadFromSerializedProto(read_text(file, largest_tokenizer));
    if (!status.ok()) throw file_error(file, "is not a sentencepiece model");
  }

  std::vector<std::int32_t> encode(std::string_view text) const override {
    std::vector<std::int32_t> ids;
    std::vector<int> line_ids;
    while (!text.empty()) {
      const std::string_view line = text.substr(0, text.find('\n'));
      text.remove_prefix(std::min(text.size(), line.size() + 1));
      const auto status = processor_.Encode({line.data(), line.size()}, &line_ids);
      if (!status.ok()) throw std::runtime_error("sentencepiece: " + status.ToString());
      ids.insert(ids.end(), line_ids.begin(), line_ids.end());
    }
    return ids;
  }

  std::string decode(std::span<const std::int32_t> ids) const override {
    require_ids(ids, vocab());
    std::string text;
    const auto status = processor_.Decode(std::vector<int>(ids.begin(), ids.end()), &text);
    if (!status.ok()) throw std::runtime_error("sentencepiece: " + status.ToString());
    return text;
  }

  std::vector<std::int32_t> encode_whole(std::string_view text) const override {
    std::vector<int> ids;
    const auto status = processor_.Encode({text.data(), text.size()}, &ids);
    if (!status.ok()) throw std::runtime_error("sentencepiece: " + status.ToString());
    return {ids.begin(), ids.end()};
  }

  std::int64_t vocab() const override { return processor_.GetPieceSize(); }

 private:
  sentencepiece::SentencePieceProcessor processor_;
};

} // namespace

std::unique_ptr<tokenizer> byte_tokenizer() {
  return std::make_unique<bytes>();
}

std::unique_ptr<tokenizer> sentencepiece_tokenizer(const std::filesystem::path& file) {
  return std::make_unique<sentencepiece_model>(file);
}

std::unique_ptr<tokenizer> json_tokenizer(const std::filesystem::path& file) {
  return parse_tokenizer_json(file, read_text(file, largest_tokenizer));
}

std::unique_ptr<tokenizer> gguf_file_tokenizer(const std::filesystem::path& file) {
  const mapped_file mapping(file);
  const auto description = read_gguf_tokenizer(read_gguf(file, mapping.bytes()).metadata);
  if (!description) {
    throw file_error(file,
                     "holds no tokenizer: give token ids (.npy, .u16, .u32) in place of text");
  }
  return make_gguf_tokenizer(file, *description);
}

std::unique_ptr<tokenizer> open_tokenizer(const std::filesystem::path& directory,
                                          const model_config& config) {
  if (config.byte_tokens) return byte_tokenizer();
  if (is_gguf(directory)) {
    auto model = gguf_file_tokenizer(directory);
    require_vocabulary(directory, *model, config);
    return model;
  }
  const auto exists = [&](const char* name) {
    std::error_code ignored;
    return std::filesystem::exists(directory / name, ignored);
  };
  const bool pieces = exists("tokenizer.model");
  if (!pieces && !exists("tokenizer.json")) {
    throw file_error(directory,
                     "holds neither tokenizer.model (sentencepiece) nor tokenizer.json: give token "
                     "ids (.npy, .u16, .u32) in place of text");
  }
  const auto file = file_inside(directory, pieces ? "tokenizer.model" : "tokenizer.json");
  auto model = pieces ? sentencepiece_tokenizer(file) : json_tokenizer(file);
  require_vocabulary(file, *model, config);
  return model;
}

std::vector<std::int32_t> prompt_prefix(const model_config& config, const tokenizer& text) {
  if (const auto prefix = text.prompt_prefix()) return *prefix;
  const bool bos = config.bos && !config.byte_tokens && config.family != model_family::qwen2 &&
                   config.family != model_family::qwen3;
  return bos ? std::vector{*config.bos} : std::vector<std::int32_t>();
}

} // namespace ressvd_llm
