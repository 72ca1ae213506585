// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace CLI {
class App;
}

namespace ressvd_llm {

// `correct MODEL OUT`: an adapter that takes a quantised GGUF file closer to its original.
void add_correct(CLI::App& app);

} // namespace ressvd_llm
