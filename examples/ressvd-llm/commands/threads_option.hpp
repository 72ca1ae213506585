// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace CLI {
class App;
class Option;
} // namespace CLI

namespace ressvd_llm {

// --threads N, in force as soon as the command line is read: at least 1, at most 4 a processor.
CLI::Option* add_threads_option(CLI::App& command);

} // namespace ressvd_llm
