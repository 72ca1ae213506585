// SPDX-License-Identifier: Apache-2.0
//
// The program's commands within the test, and what they print.
#pragma once

#include <string>
#include <vector>

#include "commands/program.hpp"
#include "llm/io/limits.hpp"

namespace llm_test {

struct outcome {
  int status = -1;
  std::string out;
  std::string err;
};

inline outcome run_command(const std::vector<std::string>& arguments) {
  std::vector<const char*> argv{"ressvd-llm"};
  for (const std::string& argument : arguments)
    argv.push_back(argument.c_str());
  outcome result;
  result.err = output_of(2, [&] {
    result.out = output_of(1, [&] {
      result.status = ressvd_llm::run_program(static_cast<int>(argv.size()), argv.data());
    });
  });
  return result;
}

} // namespace llm_test
