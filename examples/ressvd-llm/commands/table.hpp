// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace CLI {
class App;
}

namespace ressvd_llm {

// `table REPORT …`: the reports of several runs of `compress` side by side.
void add_table(CLI::App& app);

} // namespace ressvd_llm
