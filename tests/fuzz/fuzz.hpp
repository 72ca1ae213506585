// SPDX-License-Identifier: Apache-2.0
//
// What the fuzz targets share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <string>
#include <string_view>

namespace fuzz {

/// Stops the run where a promise is broken; libFuzzer keeps the input.
inline void require(bool promise) {
  if (!promise) std::abort();
}

/// Users see the messages of refusals: one line, without control characters, not endless.
inline void require_message(const std::exception& error) {
  const std::string_view text = error.what();
  require(!text.empty() && text.size() < 2000);
  for (const char c : text)
    require(static_cast<unsigned char>(c) >= 0x20 && c != 0x7f);
}

} // namespace fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);
