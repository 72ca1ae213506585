// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace CLI {
class App;
}

namespace ressvd_llm {

// `compare ORIGINAL COMPRESSED …`: what was lost and what was gained, as a table.
void add_compare(CLI::App& app);

} // namespace ressvd_llm
