// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace ressvd_llm {

// The program: parses the command line, runs the subcommand and returns the exit status.
// 0 success; 2 a request or a file that cannot be used as it is, told in one line on stderr;
// 3 the output is written, but compress removed less than was asked for; 1 any other failure.
int run_program(int argc, const char* const* argv);

} // namespace ressvd_llm
