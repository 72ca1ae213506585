// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace CLI {
class App;
}

namespace ressvd_llm {

// `convert MODEL OUT`: a model as a GGUF file.
void add_convert(CLI::App& app);

} // namespace ressvd_llm
