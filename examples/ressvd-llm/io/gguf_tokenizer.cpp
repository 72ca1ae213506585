// SPDX-License-Identifier: Apache-2.0
#include "io/gguf_tokenizer.hpp"

#include <utility>

namespace ressvd_llm {
namespace {

std::string full_key(const char* name) {
  return "tokenizer.ggml." + std::string(name);
}

std::optional<std::int32_t> token_id(const gguf_metadata& metadata, const char* name,
                                     std::size_t tokens) {
  const std::string key = full_key(name);
  const auto id = metadata.integer(key);
  if (!id) return std::nullopt;
  if (*id < 0 || std::cmp_greater_equal(*id, tokens)) {
    metadata.fail(
        key, "(" + std::to_string(*id) + ") is outside the " + std::to_string(tokens) + " tokens");
  }
  return static_cast<std::int32_t>(*id);
}

void require_count(const gguf_metadata& metadata, const char* name, std::size_t count,
                   std::size_t tokens) {
  if (count == 0 || count == tokens) return;
  metadata.fail(full_key(name), "has " + std::to_string(count) + " values for " +
                                    std::to_string(tokens) + " tokens");
}

} // namespace

std::optional<gguf_tokenizer> read_gguf_tokenizer(const gguf_metadata& metadata) {
  const auto model = metadata.text(full_key("model"));
  if (!model || *model == "none" || *model == "no_vocab") return std::nullopt;
  gguf_tokenizer result;
  result.model = *model;
  result.pre = metadata.text(full_key("pre")).value_or("default");
  auto tokens = metadata.texts(full_key("tokens"));
  if (!tokens) metadata.fail(full_key("tokens"), "is missing");
  result.tokens = *std::move(tokens);
  const std::size_t count = result.tokens.size();
  result.scores = metadata.numbers(full_key("scores")).value_or(std::vector<float>());
  require_count(metadata, "scores", result.scores.size(), count);
  for (const std::int32_t kind :
       metadata.integers(full_key("token_type")).value_or(std::vector<std::int32_t>())) {
    if (kind < 0 || kind > static_cast<std::int32_t>(gguf_token_kind::byte))
      metadata.fail(full_key("token_type"), "has the unknown kind " + std::to_string(kind));
    result.kinds.push_back(static_cast<gguf_token_kind>(kind));
  }
  require_count(metadata, "token_type", result.kinds.size(), count);
  result.merges = metadata.texts(full_key("merges")).value_or(std::vector<std::string>());
  result.bos = token_id(metadata, "bos_token_id", count);
  result.eos = token_id(metadata, "eos_token_id", count);
  result.unknown = token_id(metadata, "unknown_token_id", count);
  result.padding = token_id(metadata, "padding_token_id", count);
  result.add_bos = metadata.flag(full_key("add_bos_token"));
  result.add_eos = metadata.flag(full_key("add_eos_token"));
  result.add_space_prefix = metadata.flag(full_key("add_space_prefix"));
  return result;
}

void add_tokenizer(const gguf_tokenizer& tokenizer, gguf_pairs& pairs) {
  pairs.text(full_key("model"), tokenizer.model);
  pairs.text(full_key("pre"), tokenizer.pre);
  pairs.texts(full_key("tokens"), tokenizer.tokens);
  if (!tokenizer.scores.empty()) pairs.numbers(full_key("scores"), tokenizer.scores);
  std::vector<std::int32_t> kinds;
  for (const gguf_token_kind kind : tokenizer.kinds)
    kinds.push_back(static_cast<std::int32_t>(kind));
  if (!kinds.empty()) pairs.integers(full_key("token_type"), kinds);
  if (!tokenizer.merges.empty()) pairs.texts(full_key("merges"), tokenizer.merges);
  const auto id = [&](const char* name, std::optional<std::int32_t> value) {
    if (value) pairs.u32(full_key(name), static_cast<std::uint32_t>(*value));
  };
  id("unknown_token_id", tokenizer.unknown);
  id("padding_token_id", tokenizer.padding);
  const auto flag = [&](const char* name, std::optional<bool> value) {
    if (value) pairs.flag(full_key(name), *value);
  };
  flag("add_bos_token", tokenizer.add_bos);
  flag("add_eos_token", tokenizer.add_eos);
  flag("add_space_prefix", tokenizer.add_space_prefix);
}

} // namespace ressvd_llm
