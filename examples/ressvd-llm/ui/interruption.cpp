// SPDX-License-Identifier: Apache-2.0
#include "ui/interruption.hpp"

#include <atomic>
#include <cstddef>
#include <utility>

#include <unistd.h>

namespace ressvd_llm {
namespace {

std::atomic<const interruption_notice*> current{nullptr};
std::atomic<bool> held{false};
std::atomic<int> waiting{0}; // the signal that came while held
static_assert(std::atomic<const interruption_notice*>::is_always_lock_free &&
              std::atomic<bool>::is_always_lock_free && std::atomic<int>::is_always_lock_free);

} // namespace

// A signal handler: it reads strings that nobody changes and calls access, write and _exit alone,
// which POSIX allows there.
void interruption_notice::tell_and_end(int signal) {
  if (held.load()) {
    waiting.store(signal);
    return;
  }
  if (const interruption_notice* const notice = current.load()) {
    const bool finished = ::access(notice->result_.c_str(), F_OK) == 0;
    const std::string& text = finished ? notice->finished_ : notice->unfinished_;
    [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, text.data(), text.size());
  }
  ::_exit(130);
}

interruption_notice::interruption_notice(std::string unfinished,
                                         const std::filesystem::path& result, std::string finished)
    : unfinished_("\n" + std::move(unfinished) + "\n"),
      result_(std::filesystem::absolute(result).string()),
      finished_("\n" + std::move(finished) + "\n") {
  current.store(this);
  struct sigaction action {};
  action.sa_handler = tell_and_end;
  sigemptyset(&action.sa_mask);
  for (std::size_t i = 0; i < signals_.size(); ++i) {
    ::sigaction(signals_[i], nullptr, &before_[i]);
    if (before_[i].sa_handler != SIG_IGN) ::sigaction(signals_[i], &action, nullptr);
  }
}

interruption_notice::~interruption_notice() {
  for (std::size_t i = 0; i < signals_.size(); ++i)
    ::sigaction(signals_[i], &before_[i], nullptr);
  current.store(nullptr);
}

interruption_hold::interruption_hold() {
  held.store(true);
}

interruption_hold::~interruption_hold() {
  held.store(false);
  if (const int signal = waiting.exchange(0)) interruption_notice::tell_and_end(signal);
}

} // namespace ressvd_llm
