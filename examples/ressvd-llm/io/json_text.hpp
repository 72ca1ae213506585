// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <limits>
#include <string_view>

#include <nlohmann/json.hpp>

namespace ressvd_llm {

// The JSON value of a text that comes from the file; throws file_error where it is not valid JSON
// or nested deeper than any file of this kind is.
nlohmann::json parse_json(const std::filesystem::path& file, std::string_view text);

// A number that may be infinite, which JSON has no word for: null.
nlohmann::ordered_json number_or_null(double value);
template <class Json>
double number_or_infinity(const Json& value) {
  return value.is_null() ? std::numeric_limits<double>::infinity() : value.template get<double>();
}

} // namespace ressvd_llm
