// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace CLI {
class App;
}

namespace ressvd_llm {

// `choices MODEL --tasks FILE`: how often the model finds the right answer likeliest.
void add_choices(CLI::App& app);

} // namespace ressvd_llm
