// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <filesystem>
#include <string>

#include <signal.h>

namespace ressvd_llm {

// While it lives, Ctrl-C (SIGINT) and SIGTERM print a text on stderr and end the program at once
// with status 130, without destructors; a signal that the program was started to ignore stays
// ignored. One object at a time.
class interruption_notice {
 public:
  // The text is `finished` where the file `result` exists, else `unfinished`.
  interruption_notice(std::string unfinished, const std::filesystem::path& result,
                      std::string finished);
  interruption_notice(const interruption_notice&) = delete;
  interruption_notice& operator=(const interruption_notice&) = delete;
  ~interruption_notice();

 private:
  static constexpr std::array signals_{SIGINT, SIGTERM};

  friend class interruption_hold;
  static void tell_and_end(int signal);

  std::string unfinished_;
  std::string result_;
  std::string finished_;
  std::array<struct sigaction, signals_.size()> before_{};
};

// While it lives, an interruption waits: for steps that belong together. One object at a time.
class interruption_hold {
 public:
  interruption_hold();
  interruption_hold(const interruption_hold&) = delete;
  interruption_hold& operator=(const interruption_hold&) = delete;
  ~interruption_hold();
};

} // namespace ressvd_llm
