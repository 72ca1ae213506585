// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

namespace CLI {
class App;
}

namespace ressvd_llm {

// `resume_command` is the command line that goes on where this one is interrupted, for messages.
void add_compress(CLI::App& app, std::string resume_command);

} // namespace ressvd_llm
