// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace ressvd_llm {

// One line on stderr that shows how much of a long work is done and the time left, judged by the
// steps so far. Nothing is printed when stderr is not a terminal. For one thread.
class progress {
 public:
  progress(std::string title, std::int64_t steps);
  progress(const progress&) = delete;
  progress& operator=(const progress&) = delete;
  ~progress(); // removes the line

  void advance(std::int64_t steps = 1);

 private:
  using clock = std::chrono::steady_clock;

  std::string title_;
  std::int64_t steps_;
  std::int64_t done_ = 0;
  bool visible_;
  clock::time_point start_ = clock::now();
  clock::time_point shown_;
};

} // namespace ressvd_llm
