// SPDX-License-Identifier: Apache-2.0
//
// Work on the threads that Eigen's products run on, for what Eigen itself leaves to one: products
// of a matrix and a vector, which run at the speed of memory.
#pragma once

#include <Eigen/Core>

#include "ressvd/core/types.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {

/// f(0) … f(count − 1), one call a thread where OpenMP is compiled in. f must not throw.
template <class F>
void in_parallel(index_t count, F f) {
#ifdef _OPENMP
#pragma omp parallel for num_threads(static_cast <int>(count)) schedule(static, 1) if (count > 1)
#endif
  for (index_t i = 0; i < count; ++i)
    f(i);
}

/// The number of threads for a matrix-vector product over this many elements: one where waking the
/// others takes longer than it saves.
inline index_t threads_for(index_t elements) {
  return elements < 200'000 ? 1 : static_cast<index_t>(Eigen::nbThreads());
}

} // namespace detail
} // namespace v0
} // namespace ressvd
