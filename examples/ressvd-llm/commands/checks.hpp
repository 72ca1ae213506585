// SPDX-License-Identifier: Apache-2.0
//
// Checks of option values whose messages say what is expected and what was given.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>

namespace ressvd_llm {

// A whole number in [least, most].
CLI::Validator whole_number(std::int64_t least,
                            std::int64_t most = (std::numeric_limits<std::int64_t>::max)());

// A number in [least, most].
CLI::Validator number(double least, double most = std::numeric_limits<double>::infinity());

// A share in [0, 1); a percentage is told how to be written as one.
CLI::Validator share_below_one();

// An option that takes one of these names and stores what it stands for.
template <class T>
CLI::Option* add_choice(CLI::App& command, const std::string& option, T& value,
                        const std::vector<std::pair<std::string, T>>& choices,
                        const std::string& help) {
  std::vector<std::string> names;
  for (const auto& choice : choices)
    names.push_back(choice.first);
  const auto store = [&value, choices](const std::string& given) {
    for (const auto& [name, meaning] : choices) {
      if (name == given) value = meaning;
    }
  };
  return command.add_option_function<std::string>(option, store, help)->check(CLI::IsMember(names));
}

} // namespace ressvd_llm
