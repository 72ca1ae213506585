// SPDX-License-Identifier: Apache-2.0
#include "io/tasks.hpp"

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <utility>

#include <nlohmann/json.hpp>

#include "io/error.hpp"
#include "io/json_text.hpp"
#include "io/paths.hpp"

namespace ressvd_llm {
namespace {

constexpr std::uint64_t largest_tasks = std::uint64_t{1} << 30;
constexpr std::size_t most_choices = 1024;

class line_reader {
 public:
  line_reader(const std::filesystem::path& file, std::size_t number, const nlohmann::json& line)
      : file_(file), number_(number), line_(line) {
    if (!line.is_object()) fail("is not an object");
  }

  choice_item read() const {
    choice_item item;
    item.task = text("task");
    item.id = line_.contains("id") ? id() : std::to_string(number_);
    item.choices = texts("choices");
    if (item.choices.size() < 2) fail("has fewer than two choices");
    if (item.choices.size() > most_choices) fail("has more than 1024 choices");
    if (line_.contains("context") == line_.contains("contexts")) {
      fail("has not exactly one of 'context' and 'contexts'");
    }
    if (line_.contains("context")) {
      item.contexts = {text("context")};
    } else {
      item.contexts = texts("contexts");
      if (item.contexts.size() != item.choices.size()) {
        fail("has " + std::to_string(item.contexts.size()) + " contexts for " +
             std::to_string(item.choices.size()) + " choices");
      }
    }
    if (line_.contains("delimiter")) item.delimiter = text("delimiter");
    const nlohmann::json& answer = at("answer");
    if (!answer.is_number_unsigned() || answer.get<std::uint64_t>() >= item.choices.size()) {
      fail("has an 'answer' that is no index of a choice");
    }
    item.answer = answer.get<std::size_t>();
    return item;
  }

 private:
  const nlohmann::json& at(const char* key) const {
    if (!line_.contains(key)) fail("has no '" + std::string(key) + "'");
    return line_[key];
  }

  std::string text(const char* key) const {
    const nlohmann::json& value = at(key);
    if (!value.is_string()) fail("has a '" + std::string(key) + "' that is no text");
    return value.get<std::string>();
  }

  std::string id() const {
    const nlohmann::json& value = line_["id"];
    return value.is_number_integer() ? value.dump() : text("id");
  }

  std::vector<std::string> texts(const char* key) const {
    const nlohmann::json& value = at(key);
    std::vector<std::string> result;
    if (!value.is_array()) fail("has '" + std::string(key) + "' that are no list");
    for (const nlohmann::json& item : value) {
      if (!item.is_string()) fail("has '" + std::string(key) + "' that are not texts");
      result.push_back(item.get<std::string>());
    }
    return result;
  }

  [[noreturn]] void fail(const std::string& what) const {
    throw file_error(file_, "line " + std::to_string(number_) + " " + what);
  }

  const std::filesystem::path& file_;
  std::size_t number_;
  const nlohmann::json& line_;
};

} // namespace

std::vector<choice_item> read_tasks(const std::filesystem::path& file) {
  const std::string content = read_text(file, largest_tasks);
  std::string_view rest = content;
  std::vector<choice_item> items;
  for (std::size_t number = 1; !rest.empty(); ++number) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(rest.size(), line.size() + 1));
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    nlohmann::json value;
    try {
      value = parse_json(file, line);
    } catch (const file_error&) {
      throw file_error(file, "line " + std::to_string(number) + " is not valid JSON");
    }
    items.push_back(line_reader(file, number, value).read());
  }
  if (items.empty()) throw file_error(file, "holds no items");
  return items;
}

} // namespace ressvd_llm
