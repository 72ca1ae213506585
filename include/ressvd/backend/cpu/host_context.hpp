// SPDX-License-Identifier: Apache-2.0
//
// What a CPU backend computes with: scratch memory and threads, its own or the engine's. Backends
// of both precisions share one context; one context serves one thread at a time.
//
// Threads: loops over parts of a product are handed to the context, which runs them on a pool of
// its own, asleep between them, or on the engine's.
#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>
#include <memory>
#include <new>
#include <optional>
#include <thread>
#include <utility>

#include "ressvd/backend/cpu/thread_pool.hpp"
#include "ressvd/core/error.hpp"
#include "ressvd/core/types.hpp"
#include "ressvd/core/workspace.hpp"

namespace ressvd {
inline namespace v0 {

/// Cache-aligned memory from the C++ heap.
struct host_memory {
  static constexpr std::align_val_t alignment{256};
  static void* allocate(std::size_t bytes) {
    void* p = ::operator new(bytes, alignment, std::nothrow);
    detail::require<workspace_error>(p != nullptr, "could not allocate ", bytes,
                                     " bytes of host memory");
    return p;
  }
  static void deallocate(void* p, std::size_t) noexcept { ::operator delete(p, alignment); }
};

struct host_context_options {
  /// Scratch memory of the caller's, which must outlive the context and is used alone: a kernel
  /// that needs more throws workspace_error. Results are still allocated (they outlive the call),
  /// and so is what the decompositions of both CPU backends need inside. Null: memory of the
  /// context's own, which grows on demand.
  void* buffer = nullptr;
  std::size_t bytes = 0;
  /// Threads that share the work of a call, the caller's among them; 1: nothing leaves the caller's
  /// thread; 0: as many as the machine has. They start with the first work that is worth sharing.
  index_t threads = 0;
  /// The engine's own loop in place of a pool: calls body(i) once for each i in [0, count), on
  /// about `threads` threads, and returns when all are done. The body may throw.
  std::function<void(index_t count, const loop_body& body)> parallel_for = {};
  /// The least work, in flops, that is shared: sleeping threads take 10 to 50 µs to wake. A loop at
  /// the speed of memory counts 16 for each element that it reads.
  double worth_sharing = 4e6;
};

class host_context {
 public:
  explicit host_context(host_context_options options = {})
      : scratch(options.buffer ? workspace<host_memory>(options.buffer, options.bytes)
                               : workspace<host_memory>()),
        threads_(options.threads),
        lent_(std::move(options.parallel_for)),
        worth_sharing_(options.worth_sharing) {
    detail::require(threads_ >= 0, "a context of ", threads_, " threads");
    if (threads_ == 0) {
      threads_ = (std::max)(static_cast<index_t>(std::thread::hardware_concurrency()), index_t{1});
    }
  }
  /// Takes scratch from the caller's buffer alone, see host_context_options.
  host_context(void* buffer, std::size_t bytes)
      : host_context(host_context_options{.buffer = buffer, .bytes = bytes}) {}

  /// Threads that a loop started here would run on: 1 within another.
  index_t threads() const { return detail::inside_loop ? 1 : threads_; }

  double worth_sharing() const { return worth_sharing_; }

  /// body(i) once for each i in [0, count): on several threads where the loop is of that many
  /// flops, on the caller's otherwise and where this is called from within such a loop.
  template <class Body>
  void parallel_for(index_t count, double flops, const Body& body) {
    const bool shared = count > 1 && flops >= worth_sharing_ && threads() > 1;
    if (shared && lent_) {
      lent_(count, [&](index_t i) {
        const detail::loop_scope inside;
        body(i);
      });
    } else if (shared) {
      if (!pool_) pool_.emplace(threads_);
      pool_->run(count, std::ref(body));
    } else {
      for (index_t i = 0; i < count; ++i)
        body(i);
    }
  }

  workspace<host_memory> scratch;

 private:
  index_t threads_;
  std::function<void(index_t, const loop_body&)> lent_;
  double worth_sharing_;
  std::optional<thread_pool> pool_;
};

} // namespace v0
} // namespace ressvd
