// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace CLI {
class App;
}

namespace ressvd_llm {

// `generate MODEL --prompt TEXT`: what the model writes after a prompt.
void add_generate(CLI::App& app);

} // namespace ressvd_llm
