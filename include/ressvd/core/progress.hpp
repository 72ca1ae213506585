// SPDX-License-Identifier: Apache-2.0
//
// The callback by which a call that takes long shows progress and may be cancelled.
#pragma once

#include <functional>

#include "ressvd/core/error.hpp"

namespace ressvd {
inline namespace v0 {

/// Called on the calling thread with the share of the work that is done: an estimate in [0, 1) that
/// never falls, first before the work, then between the steps of an algorithm (products,
/// decompositions) and in each sweep of an iteration. False ends the call with ressvd::cancelled.
/// One step, such as the eigendecomposition of a Gram, is never interrupted.
using progress_callback = std::function<bool(double done)>;

namespace detail {

/// Tells the caller's callback; throws ressvd::cancelled where it asks for the end.
inline void report_progress(const progress_callback& progress, double done, const char* work) {
  if (progress && !progress(done)) {
    fail<cancelled>("cancelled by the progress callback after ", 100 * done, " % of ", work);
  }
}

} // namespace detail
} // namespace v0
} // namespace ressvd
