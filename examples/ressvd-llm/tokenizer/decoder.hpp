// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "tokenizer/pattern.hpp"

namespace ressvd_llm {

// Turns tokens into the parts of a text.
class token_decoder {
 public:
  virtual ~token_decoder() = default;
  virtual std::vector<std::string> decode(std::vector<std::string> tokens) const = 0;
};

using decoder_pointer = std::shared_ptr<const token_decoder>;

// The bytes behind GPT-2's alphabet, all together; what is no UTF-8 becomes U+FFFD as in to_utf8.
decoder_pointer byte_level_decoder();
// Neighbouring tokens such as <0x0A> become their bytes; if these are no UTF-8, U+FFFD for each.
decoder_pointer byte_fallback_decoder();
// The replacement becomes a space; in the first token, where it was put in front, nothing.
decoder_pointer metaspace_decoder(std::string replacement, bool prepended);
decoder_pointer replace_decoder(pattern replaced, std::string content);
// All tokens become one.
decoder_pointer fuse_decoder();
// Removes so many of the character (at most) from both ends of each token.
decoder_pointer strip_decoder(std::string character, std::size_t start, std::size_t stop);
decoder_pointer decoder_sequence(std::vector<decoder_pointer> steps);

} // namespace ressvd_llm
