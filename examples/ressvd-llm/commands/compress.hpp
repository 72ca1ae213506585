// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace CLI {
class App;
}

namespace ressvd_llm {

void add_compress(CLI::App& app);

} // namespace ressvd_llm
