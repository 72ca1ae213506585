// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace CLI {
class App;
}

namespace ressvd_llm {

// `perplexity MODEL --text FILE | --tokens FILE`: how well the model predicts a text.
void add_perplexity(CLI::App& app);

} // namespace ressvd_llm
