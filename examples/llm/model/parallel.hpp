// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>

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

// Calls body(first, last) for pieces of [0, count), each at least `grain` long, from several
// threads. The body must not throw.
template <class Body>
void parallel_for(std::int64_t count, std::int64_t grain, const Body& body) {
  const std::int64_t pieces =
      std::clamp<std::int64_t>(count / std::max<std::int64_t>(grain, 1), 1, 4 * thread_count());
  if (pieces == 1 || thread_count() == 1) {
    if (count > 0) body(std::int64_t{0}, count);
    return;
  }
#ifdef _OPENMP
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t piece = 0; piece < pieces; ++piece)
    body(piece * count / pieces, (piece + 1) * count / pieces);
#endif
}

} // namespace ressvd_llm
