// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

namespace ressvd_llm {

// A regular expression as tokenizer.json has it, in Oniguruma's syntax, written for PCRE2 with UTF
// and UCP so that it means the same. Throws std::invalid_argument for what would not mean the same,
// and for what tokenizers have no use for, back references for one.
std::string oniguruma_to_pcre2(std::string_view pattern);

} // namespace ressvd_llm
