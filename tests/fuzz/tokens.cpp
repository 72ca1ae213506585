// SPDX-License-Identifier: Apache-2.0
//
// Any bytes as a file of token ids: refused, or ids below the vocabulary. The last byte chooses the
// kind of file and the vocabulary.
#include "io/tokens.hpp"

#include <array>
#include <span>

#include "fuzz.hpp"
#include "io/error.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  constexpr std::array<const char*, 4> names{"x.npy", "x.u16", "x.u32", "x.npy"};
  constexpr std::array<std::int64_t, 4> vocabularies{256, 1, 65'536, 2'147'483'647};
  const std::size_t choice = data[size - 1];
  const std::int64_t vocab = vocabularies[choice / 4 % 4];
  try {
    const auto ids = ressvd_llm::parse_tokens(
        names[choice % 4], std::as_bytes(std::span(data, size - 1)), vocab, nullptr);
    fuzz::require(ids.size() < size);
    for (const std::int32_t id : ids)
      fuzz::require(id >= 0 && id < vocab);
  } catch (const ressvd_llm::file_error& error) {
    fuzz::require_message(error);
  }
  return 0;
}
