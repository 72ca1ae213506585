// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/gguf_from_directory.hpp"

#include <utility>

#include "io/error.hpp"
#include "io/paths.hpp"
#include "tokenizer/sentencepiece_proto.hpp"
#include "tokenizer/tokenizer_json.hpp"

namespace ressvd_llm {
namespace {

constexpr std::uint64_t largest_tokenizer_file = 268'435'456;

gguf_tokenizer of_sentencepiece(const std::filesystem::path& file, const model_config& config) {
  const sentencepiece_content content =
      read_sentencepiece(file, read_text(file, largest_tokenizer_file));
  const auto refuse = [&](const char* what) {
    throw file_error(file, std::string(what) + ", which GGUF cannot say");
  };
  if (!content.is_bpe) refuse("is not of the type BPE");
  if (content.normalizes) refuse("normalises texts");
  if (content.removes_spaces) refuse("removes spaces that follow others");
  gguf_tokenizer result;
  result.model = "llama";
  result.pre = "default";
  result.add_space_prefix = content.adds_space;
  if (config.bos) result.add_bos = true;
  for (const sentencepiece_piece& piece : content.pieces) {
    if (piece.kind == gguf_token_kind::unknown)
      result.unknown = static_cast<std::int32_t>(result.tokens.size());
    std::string text = piece.text;
    if (piece.kind == gguf_token_kind::user_defined) {
      // Found in the text before its spaces are marked.
      constexpr std::string_view mark = "\xe2\x96\x81";
      for (std::size_t at = text.find(mark); at != std::string::npos; at = text.find(mark, at))
        text.replace(at, mark.size(), " ");
    }
    result.tokens.push_back(std::move(text));
    result.scores.push_back(piece.score);
    result.kinds.push_back(piece.kind);
  }
  return result;
}

gguf_tokenizer read_tokenizer(const std::filesystem::path& directory, const model_config& config) {
  if (config.byte_tokens)
    throw file_error(directory, "its tokens are bytes, which GGUF cannot say");
  std::error_code ignored;
  if (std::filesystem::exists(directory / "tokenizer.model", ignored))
    return of_sentencepiece(file_inside(directory, "tokenizer.model"), config);
  if (!std::filesystem::exists(directory / "tokenizer.json", ignored))
    throw file_error(directory, "holds neither tokenizer.model nor tokenizer.json");
  const auto file = file_inside(directory, "tokenizer.json");
  return gguf_tokenizer_of_json(file, read_text(file, largest_tokenizer_file), config.bos);
}

} // namespace

std::variant<gguf_tokenizer, std::string> gguf_tokenizer_of(const std::filesystem::path& directory,
                                                            const model_config& config) {
  try {
    gguf_tokenizer result = read_tokenizer(directory, config);
    const auto vocabulary = static_cast<std::size_t>(config.vocab);
    if (result.tokens.size() > vocabulary)
      throw file_error(directory, "its tokenizer has more tokens than the model");
    for (std::size_t i = result.tokens.size(); i < vocabulary; ++i) {
      result.tokens.push_back("[PAD" + std::to_string(i) + "]");
      result.kinds.push_back(gguf_token_kind::unused);
      if (!result.scores.empty()) result.scores.push_back(-10'000.0f);
    }
    return result;
  } catch (const file_error& error) {
    return error.what();
  }
}

} // namespace ressvd_llm
