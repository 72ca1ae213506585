// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <vector>

namespace ressvd_llm {

// A question with several answers.
struct choice_item {
  std::string task;
  std::string id;                    // its line's number where the file does not say
  std::vector<std::string> contexts; // one, or one for each choice
  std::vector<std::string> choices;
  std::string delimiter = " "; // between context and choice
  std::size_t answer = 0;

  const std::string& context_of(std::size_t choice) const {
    return contexts[contexts.size() == 1 ? 0 : choice];
  }
};

// One JSON object a line: "task", "context" or "contexts", "choices", "answer" (an index), and
// optionally "id" and "delimiter". Throws file_error, with the line, for anything else.
std::vector<choice_item> read_tasks(const std::filesystem::path& file);

} // namespace ressvd_llm
