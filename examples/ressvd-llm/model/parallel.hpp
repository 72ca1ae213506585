// SPDX-License-Identifier: Apache-2.0
//
// The program's threads: one pool, which its own loops and the library's kernels share.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>

#include <ressvd/backend/cpu/host_context.hpp>

namespace ressvd_llm {

inline std::unique_ptr<ressvd::thread_pool>& program_threads() {
  static auto pool = std::make_unique<ressvd::thread_pool>(ressvd::host_context().threads());
  return pool;
}

// Threads a parallel loop started here would use.
inline std::int64_t thread_count() {
  return ressvd::detail::inside_loop ? 1 : program_threads()->threads();
}

// Sets the number of threads, for --threads; to be called before the first loop.
inline void set_thread_count(int count) {
  program_threads() = std::make_unique<ressvd::thread_pool>(count);
}

// The context of the library's CPU backends: scratch memory of their own and the program's threads.
inline std::shared_ptr<ressvd::host_context> make_host_context() {
  return std::make_shared<ressvd::host_context>(ressvd::host_context_options{
      .threads = thread_count(),
      .parallel_for = [](std::int64_t count, const ressvd::loop_body& body) {
        program_threads()->run(count, body);
      }});
}

// Number of the calling thread within a parallel loop, below the loop's thread_count().
inline thread_local std::int64_t current_thread_index = 0;
inline std::int64_t thread_index() {
  return current_thread_index;
}

// Calls body(i) for every i in [0, count) from several threads; loops within the body run on their
// own thread. Afterwards the first exception of a body, if any, is thrown again.
template <class Body>
void parallel_each(std::int64_t count, const Body& body) {
  const std::int64_t threads = std::min(count, thread_count());
  if (threads <= 1) {
    for (std::int64_t i = 0; i < count; ++i)
      body(i);
    return;
  }
  std::atomic<std::int64_t> next = 0;
  program_threads()->run(threads, [&](std::int64_t thread) {
    current_thread_index = thread;
    try {
      for (std::int64_t i = next++; i < count; i = next++)
        body(i);
    } catch (...) {
      current_thread_index = 0;
      next = count;
      throw;
    }
    current_thread_index = 0;
  });
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
