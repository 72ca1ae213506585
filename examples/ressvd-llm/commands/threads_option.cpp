// SPDX-License-Identifier: Apache-2.0
#include "commands/threads_option.hpp"

#include <CLI/CLI.hpp>

#include "model/parallel.hpp"

namespace ressvd_llm {

void add_threads_option(CLI::App& command) {
  command
      .add_option_function<int>(
          "--threads", [](int count) { set_thread_count(count); }, "Threads (default: all)")
      ->check(CLI::PositiveNumber);
}

} // namespace ressvd_llm
