// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace CLI {
class App;
}

namespace ressvd_llm {

// `sample MODEL OUT`: token ids that the model writes itself, to calibrate and evaluate on.
void add_sample(CLI::App& app);

} // namespace ressvd_llm
