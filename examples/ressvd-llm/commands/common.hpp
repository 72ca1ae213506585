// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "model/evaluation.hpp"
#include "ui/progress.hpp"

namespace CLI {
class App;
}

namespace ressvd_llm {

// --threads N, in force as soon as the command line is read.
void add_threads_option(CLI::App& command);

// Shows fractions on a bar of this many steps; the bar must outlive the function.
inline constexpr std::int64_t fraction_steps = 1000;
progress_function show_fractions(progress& bar);

} // namespace ressvd_llm
