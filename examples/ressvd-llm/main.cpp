// SPDX-License-Identifier: Apache-2.0
//
// ressvd-llm: compresses language models. Every subcommand has its own file in commands/.
#include "commands/program.hpp"

int main(int argc, char** argv) {
  return ressvd_llm::run_program(argc, argv);
}
