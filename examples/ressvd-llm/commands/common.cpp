// SPDX-License-Identifier: Apache-2.0
#include "commands/common.hpp"

#include <CLI/CLI.hpp>

#include "model/parallel.hpp"

namespace ressvd_llm {

void add_threads_option(CLI::App& command) {
  command
      .add_option_function<int>(
          "--threads", [](int count) { set_thread_count(count); }, "Threads (default: all)")
      ->check(CLI::PositiveNumber);
}

progress_function show_fractions(progress& bar) {
  return [&bar, shown = std::int64_t{0}](double done) mutable {
    const auto steps = static_cast<std::int64_t>(static_cast<double>(fraction_steps) * done);
    bar.advance(steps - shown);
    shown = steps;
  };
}

} // namespace ressvd_llm
