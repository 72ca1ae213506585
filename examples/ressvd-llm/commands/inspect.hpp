// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace CLI {
class App;
}

namespace ressvd_llm {

// `inspect MODEL`: layers, shapes, ranks if compressed, parameter counts.
void add_inspect(CLI::App& app);

} // namespace ressvd_llm
