// SPDX-License-Identifier: Apache-2.0
//
// Errors. A caller's mistake is a std::invalid_argument whose text has the numbers; a failure of
// memory or of a library underneath is one of the classes here. Numerical outcomes (damping, a
// reduced rank) are not errors: the report beside a result states them.
//
// Every check stays in Release builds.
#pragma once

#include <new>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

namespace ressvd {
inline namespace v0 {

/// Data that holds NaN or infinity where numbers are needed. The text names the data.
class nonfinite_error : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

/// A matrix passed as a Gram matrix that is not positive semidefinite.
class indefinite_error : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

/// A fixed workspace that is too small, or an allocation that failed; the text has both sizes.
class workspace_error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A library under a backend (LAPACK, cuBLAS, cuSOLVER) that reported failure.
class backend_error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

namespace detail {

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

template <class Error = std::invalid_argument, class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  throw Error(text("ressvd: ", parts...));
}

template <class Error = std::invalid_argument, class... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) [[unlikely]]
    fail<Error>(parts...);
}

} // namespace detail
} // namespace v0
} // namespace ressvd
