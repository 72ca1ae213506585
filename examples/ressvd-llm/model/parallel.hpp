// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace ressvd_llm {

// Threads a parallel loop started here would use.
inline std::int64_t thread_count() {
#ifdef _OPENMP
  return omp_in_parallel() != 0 ? 1 : omp_get_max_threads();
#else
  return 1;
#endif
}

// Number of the calling thread within a parallel loop, below the loop's thread_count().
inline std::int64_t thread_index() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// For the option --threads; 0 leaves the number as it is.
inline void set_thread_count([[maybe_unused]] int count) {
#ifdef _OPENMP
  if (count > 0) omp_set_num_threads(count);
#endif
}

// Calls body(i) for every i in [0, count) from several threads; loops within the body run on their
// own thread. Afterwards the first exception of a body, if any, is thrown again.
template <class Body>
void parallel_each(std::int64_t count, const Body& body) {
  if (count <= 1 || thread_count() == 1) {
    for (std::int64_t i = 0; i < count; ++i)
      body(i);
    return;
  }
#ifdef _OPENMP
  std::exception_ptr failure;
  std::atomic<bool> failed = false;
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t i = 0; i < count; ++i) {
    if (failed) continue;
    try {
      body(i);
    } catch (...) {
      if (!failed.exchange(true)) failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
#endif
}

// Calls body(first, last) for pieces of [0, count), each at least `grain` long, like
// parallel_each.
template <class Body>
void parallel_for(std::int64_t count, std::int64_t grain, const Body& body) {
  if (count < 1) return;
  const std::int64_t threads = thread_count();
  const std::int64_t pieces =
      threads == 1
          ? 1
          : std::clamp<std::int64_t>(count / std::max<std::int64_t>(grain, 1), 1, 2 * threads);
  parallel_each(pieces, [&](std::int64_t piece) {
    body(piece * count / pieces, (piece + 1) * count / pieces);
  });
}

} // namespace ressvd_llm
