// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <string_view>

#include <nlohmann/json.hpp>

namespace ressvd_llm {

// The JSON value of a text that comes from the file; throws file_error where it is not valid JSON
// or nested deeper than any file of this kind is.
nlohmann::json parse_json(const std::filesystem::path& file, std::string_view text);

} // namespace ressvd_llm
