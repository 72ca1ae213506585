// SPDX-License-Identifier: Apache-2.0
#include "ui/progress.hpp"

#include <cstdio>
#include <utility>

#include <unistd.h>

namespace ressvd_llm {

progress::progress(std::string title, std::int64_t steps)
    : title_(std::move(title)), steps_(steps), visible_(::isatty(STDERR_FILENO) == 1) {}

progress::~progress() {
  if (visible_) std::fputs("\r\x1b[K", stderr);
}

void progress::advance(std::int64_t steps) {
  done_ += steps;
  const clock::time_point now = clock::now();
  if (!visible_ || now - shown_ < std::chrono::milliseconds(100)) return;
  shown_ = now;
  const double share = static_cast<double>(done_) / static_cast<double>(steps_);
  const std::chrono::duration<double> spent = now - start_;
  const auto left = static_cast<long>(spent.count() * (1 - share) / share);
  std::fprintf(stderr, "\r%s %3.0f %%, %ld:%02ld left\x1b[K", title_.c_str(), 100 * share,
               left / 60, left % 60);
}

void fraction_progress::operator()(double done) {
  const auto reached = static_cast<std::int64_t>(static_cast<double>(steps) * done);
  bar_.advance(reached - shown_);
  shown_ = reached;
}

} // namespace ressvd_llm
