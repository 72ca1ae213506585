// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/pattern.hpp"
#include "tokenizer/utf8.hpp"

namespace ressvd_llm {

// Rewrites a text before it is cut.
class normalizer {
 public:
  virtual ~normalizer() = default;
  virtual std::string normalize(std::string_view text) const = 0;
};

using normalizer_pointer = std::shared_ptr<const normalizer>;

normalizer_pointer unicode_normalizer(normal_form form);
normalizer_pointer lowercase_normalizer();
// Puts a string before every text that is not empty.
normalizer_pointer prepend_normalizer(std::string prefix);
normalizer_pointer replace_normalizer(pattern replaced, std::string content);
normalizer_pointer normalizer_sequence(std::vector<normalizer_pointer> steps);

} // namespace ressvd_llm
