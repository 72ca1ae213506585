// SPDX-License-Identifier: Apache-2.0
#include "commands/checks.hpp"

#include <charconv>
#include <cmath>
#include <optional>
#include <sstream>
#include <string>
#include <system_error>

namespace ressvd_llm {
namespace {

template <class T>
std::optional<T> parse(const std::string& text) {
  T value{};
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc{} || stop != end) return std::nullopt;
  return value;
}

std::string shortest(double value) {
  std::ostringstream text;
  text << value;
  return text.str();
}

} // namespace

CLI::Validator whole_number(std::int64_t least, std::int64_t most) {
  const auto check = [least, most](const std::string& text) -> std::string {
    const auto value = parse<std::int64_t>(text);
    if (value && *value >= least && *value <= most) return {};
    const bool open = most == (std::numeric_limits<std::int64_t>::max)();
    return "expected a whole number from " + std::to_string(least) +
           (open ? " on" : " to " + std::to_string(most)) + ", not " + text;
  };
  return {check, ""};
}

CLI::Validator number(double least, double most) {
  const auto check = [least, most](const std::string& text) -> std::string {
    const auto value = parse<double>(text);
    if (value && std::isfinite(*value) && *value >= least && *value <= most) return {};
    return "expected a number from " + shortest(least) +
           (std::isinf(most) ? " on" : " to " + shortest(most)) + ", not " + text;
  };
  return {check, ""};
}

CLI::Validator share_below_one() {
  const auto check = [](const std::string& text) -> std::string {
    const auto value = parse<double>(text);
    if (value && *value >= 0 && *value < 1) return {};
    const std::string message = "expected a share of at least 0 and below 1, not " + text;
    if (!value || !(*value >= 1 && *value < 100)) return message;
    return message + "; " + shortest(*value) + " % is " + shortest(*value / 100);
  };
  return {check, ""};
}

} // namespace ressvd_llm
