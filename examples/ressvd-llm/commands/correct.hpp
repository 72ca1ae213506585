// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace CLI {
class App;
}

namespace ressvd_llm {

// Adds the subcommand, which runs when the command line names it.
void add_correct(CLI::App& app);

} // namespace ressvd_llm
