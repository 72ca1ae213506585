// SPDX-License-Identifier: Apache-2.0
//
// Errors: what the library throws, and when. A caller's mistake is an argument_error, a
// std::invalid_argument whose text has the numbers; a failure of memory or of a library underneath
// is a std::runtime_error. All of them are ressvd::error as well, so one handler catches what this
// library throws and nothing else. Numerical outcomes (damping, a reduced rank) are no errors: they
// stand in the report beside a result.
//
// Every check stays in Release builds.
#pragma once

#include <new>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

#include "ressvd/core/language.hpp"

namespace ressvd {
inline namespace v0 {

/// Base of every exception of this library, beside the standard class that each of them is.
class error {
 public:
  virtual ~error() = default;
  virtual const char* what() const noexcept = 0;

 protected:
  error() = default;
  error(const error&) = default;
  error& operator=(const error&) = default;
};

namespace detail {

template <class Standard>
class error_of : public Standard, public error {
 public:
  using Standard::Standard;
  const char* what() const noexcept override { return Standard::what(); }
};

} // namespace detail

/// A call that cannot be carried out as it was made.
class argument_error : public detail::error_of<std::invalid_argument> {
 public:
  using error_of::error_of;
};

/// Data that holds NaN or infinity where numbers are needed. The text names the data.
class nonfinite_error : public argument_error {
 public:
  using argument_error::argument_error;
};

/// A matrix passed as a Gram matrix that is not positive semidefinite.
class indefinite_error : public argument_error {
 public:
  using argument_error::argument_error;
};

/// A fixed workspace that is too small, or an allocation that failed; the text has both sizes.
class workspace_error : public detail::error_of<std::runtime_error> {
 public:
  using error_of::error_of;
};

/// A library under a backend (LAPACK, cuBLAS, cuSOLVER) that reported failure.
class backend_error : public detail::error_of<std::runtime_error> {
 public:
  using error_of::error_of;
};

/// The caller's progress callback asked for the call to end.
class cancelled : public detail::error_of<std::runtime_error> {
 public:
  using error_of::error_of;
};

namespace detail {

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

template <class Error = argument_error, class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  throw Error(text("ressvd: ", parts...));
}

template <class Error = argument_error, class... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) [[unlikely]]
    fail<Error>(parts...);
}

} // namespace detail
} // namespace v0
} // namespace ressvd
