// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <utility>

namespace ressvd_llm {

// One line on stderr that shows how much of a long work is done and the time left, judged by the
// steps so far. Nothing is printed when stderr is not a terminal. One thread may use it.
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

// The same for work that reports the fraction done, from 0 to 1; std::ref of it is a
// progress_function.
class fraction_progress {
 public:
  explicit fraction_progress(std::string title) : bar_(std::move(title), steps) {}
  void operator()(double done);

 private:
  static constexpr std::int64_t steps = 1000;
  progress bar_;
  std::int64_t shown_ = 0;
};

} // namespace ressvd_llm
