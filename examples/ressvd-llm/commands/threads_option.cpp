// SPDX-License-Identifier: Apache-2.0
#include "commands/threads_option.hpp"

#include <algorithm>
#include <cstdint>
#include <thread>

#include <CLI/CLI.hpp>

#include "commands/checks.hpp"
#include "model/parallel.hpp"

namespace ressvd_llm {

CLI::Option* add_threads_option(CLI::App& command) {
  const std::int64_t processors = std::max(1u, std::thread::hardware_concurrency());
  return command
      .add_option_function<int>(
          "--threads", [](int count) { set_thread_count(count); },
          "Threads, at most 4 a processor (default: one each)")
      ->check(whole_number(1, 4 * processors));
}

} // namespace ressvd_llm
