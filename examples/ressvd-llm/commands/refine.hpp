// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace CLI {
class App;
}

namespace ressvd_llm {

// ressvd-llm refine MODEL COMPRESSED OUT [options].
void add_refine(CLI::App& app);

} // namespace ressvd_llm
