// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace CLI {
class App;
}

namespace ressvd_llm {

struct correction_report;

// `correct MODEL OUT`: an adapter that takes a quantised GGUF file closer to its original.
void add_correct(CLI::App& app);

// What was corrected, and what that did to the held-out samples.
void print(const correction_report& report);

} // namespace ressvd_llm
