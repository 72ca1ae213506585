// SPDX-License-Identifier: Apache-2.0
//
// Seconds since it was made.
#pragma once

#include <chrono>

namespace ressvd {
inline namespace v0 {
namespace detail {

class stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

} // namespace detail
} // namespace v0
} // namespace ressvd
