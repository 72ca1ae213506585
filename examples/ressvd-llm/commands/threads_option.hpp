// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace CLI {
class App;
}

namespace ressvd_llm {

// --threads N, in force as soon as the command line is read.
void add_threads_option(CLI::App& command);

} // namespace ressvd_llm
