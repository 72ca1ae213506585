// SPDX-License-Identifier: Apache-2.0
//
// Any text as a tokenizer.json, and after a zero byte a text for it: refused, or ids below the
// vocabulary, which can be decoded.
#include "tokenizer/tokenizer_json.hpp"

#include <algorithm>
#include <string_view>

#include "fuzz.hpp"
#include "io/error.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::string_view json = input.substr(0, input.find('\0'));
  // Steps of a hostile expression have a limit for each search, so few searches are made.
  const std::string_view text = input.substr(std::min(json.size() + 1, size)).substr(0, 24);
  try {
    const auto tokenizer = ressvd_llm::parse_tokenizer_json("tokenizer.json", json);
    for (const std::string_view part : {text, std::string_view("a b  ab\n<s>\xc3\xa9")}) {
      const auto ids = tokenizer->encode(part);
      for (const std::int32_t id : ids)
        fuzz::require(id >= 0 && id < tokenizer->vocab());
      tokenizer->decode(ids);
    }
  } catch (const ressvd_llm::file_error& error) {
    fuzz::require_message(error);
  } catch (const ressvd_llm::usage_error& error) {
    fuzz::require_message(error);
  }
  return 0;
}
