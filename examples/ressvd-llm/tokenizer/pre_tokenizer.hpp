// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/pattern.hpp"

namespace ressvd_llm {

// Cuts a text into the pieces within which tokens merge.
class pre_tokenizer {
 public:
  // at_start: the piece begins where the whole input does.
  using piece_sink = std::function<void(std::string_view piece, bool at_start)>;

  virtual ~pre_tokenizer() = default;
  // Hands on the pieces in their order; some may be empty.
  virtual void split(std::string_view text, bool at_start, const piece_sink& next) const = 0;
};

using pre_tokenizer_pointer = std::shared_ptr<const pre_tokenizer>;

// What happens to the matches: they are pieces of their own, go, join the part before or behind
// them, or join the matches that they touch.
enum class split_behavior { isolated, removed, merged_with_previous, merged_with_next, contiguous };
enum class prepend_scheme { first, never, always };

// inverted: what lies between the matches counts as matches.
pre_tokenizer_pointer split_pre_tokenizer(pattern separator, split_behavior behavior,
                                          bool inverted = false);

// The bytes written in GPT-2's alphabet; pieces of GPT-2's expression where use_regex says so.
pre_tokenizer_pointer byte_level_pre_tokenizer(bool add_prefix_space, bool use_regex);

// Spaces become the replacement (one character), which also goes in front.
pre_tokenizer_pointer metaspace_pre_tokenizer(std::string replacement, prepend_scheme scheme,
                                              bool split);

pre_tokenizer_pointer pre_tokenizer_sequence(std::vector<pre_tokenizer_pointer> steps);

// The expressions that cut texts in tokenizer.json for these models.
inline constexpr std::string_view gpt2_expression =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
inline constexpr std::string_view llama3_expression =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
inline constexpr std::string_view qwen2_expression =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// The expressions that cut a text one after the other, before its bytes, of the byte-level
// pre-tokenizers below but gpt-2, which cuts as it goes to bytes. None for another name.
std::vector<std::string_view> pre_tokenizer_expressions(std::string_view name);

// Byte-level pre-tokenizers under the names that GGUF's tokenizer.ggml.pre has for them: gpt-2,
// llama-bpe, qwen2, smollm, default. None for another name.
pre_tokenizer_pointer named_pre_tokenizer(std::string_view name);

} // namespace ressvd_llm
