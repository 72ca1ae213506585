// SPDX-License-Identifier: Apache-2.0
#include "io/json_text.hpp"

#include <cmath>
#include <string>

#include "io/error.hpp"

namespace ressvd_llm {

nlohmann::json parse_json(const std::filesystem::path& file, std::string_view text) {
  constexpr int deepest = 32;
  const auto check_depth = [&](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
    if (depth > deepest) throw file_error(file, "is JSON nested too deeply");
    return true;
  };
  try {
    return nlohmann::json::parse(text, check_depth);
  } catch (const nlohmann::json::parse_error& error) {
    throw file_error(file, "is not valid JSON (at byte " + std::to_string(error.byte) + ")");
  } catch (const nlohmann::json::exception&) {
    throw file_error(file, "is not valid JSON (a number out of range)");
  }
}

nlohmann::ordered_json number_or_null(double value) {
  return std::isfinite(value) ? nlohmann::ordered_json(value) : nlohmann::ordered_json(nullptr);
}

} // namespace ressvd_llm
