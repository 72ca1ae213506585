// SPDX-License-Identifier: Apache-2.0
//
// A few threads that share the work of a loop and sleep in between: they wait on a condition
// variable and never spin, so that they cost nothing beside other programs.
//
// The caller works too. It starts at once, threads that wake up join in, and it waits for nobody
// who has not joined: on a busy machine a loop takes as long as on one thread, not longer.
//   cost        to wake a thread: about 5 µs for the caller, 10 to 50 µs until the thread is there
//   errors      the first exception that leaves the body; what has not begun by then is left out
#pragma once

#include <atomic>
#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "ressvd/core/types.hpp"

namespace ressvd {
inline namespace v0 {

/// What a loop's index is handed to.
using loop_body = std::function<void(index_t)>;

namespace detail {

/// Whether this thread is in the body of a shared loop: loops within it run on their own thread.
inline thread_local bool inside_loop = false;

/// Sets inside_loop for a scope.
class loop_scope {
 public:
  loop_scope() : before_(std::exchange(inside_loop, true)) {}
  loop_scope(const loop_scope&) = delete;
  loop_scope& operator=(const loop_scope&) = delete;
  ~loop_scope() { inside_loop = before_; }

 private:
  bool before_;
};

} // namespace detail

/// Any number of threads may hand loops to one pool: it serves one loop at a time, and another that
/// arrives meanwhile runs on its caller's thread.
class thread_pool {
 public:
  /// `threads` share a loop, the caller's among them. They start when a loop first wants them;
  /// where the system gives fewer, those do.
  explicit thread_pool(index_t threads) : threads_(threads) {}

  thread_pool(const thread_pool&) = delete;
  thread_pool& operator=(const thread_pool&) = delete;

  ~thread_pool() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_)
      worker.join();
  }

  index_t threads() const { return threads_; }

  /// body(i) once for each i in [0, count), in any order. Returns when all are done.
  void run(index_t count, const loop_body& body) {
    std::unique_lock turn(turn_, std::defer_lock);
    if (count <= 1 || threads_ <= 1 || detail::inside_loop || !turn.try_lock()) {
      for (index_t i = 0; i < count; ++i)
        body(i);
      return;
    }
    loop work{body, count};
    const index_t helpers = (count < threads_ ? count : threads_) - 1;
    start(helpers);
    {
      const std::lock_guard lock(mutex_);
      loop_ = &work;
    }
    for (index_t i = 0; i < helpers; ++i)
      wake_.notify_one();
    take_part(work);
    std::unique_lock lock(mutex_);
    loop_ = nullptr;
    done_.wait(lock, [&] { return work.helpers == 0; });
    if (work.failure) std::rethrow_exception(work.failure);
  }

 private:
  struct loop {
    const loop_body& body;
    index_t count;
    std::atomic<index_t> next = 0;
    index_t helpers = 0; ///< threads other than the caller's that work on it
    std::exception_ptr failure = nullptr;
  };

  void start(index_t helpers) {
    try {
      while (static_cast<index_t>(workers_.size()) < helpers)
        workers_.emplace_back([this] { serve(); });
    } catch (const std::system_error&) {
      // The threads that there are, or the caller alone, do the work.
    }
  }

  void take_part(loop& work) {
    const detail::loop_scope inside;
    try {
      for (index_t i = work.next++; i < work.count; i = work.next++)
        work.body(i);
    } catch (...) {
      work.next = work.count;
      const std::lock_guard lock(mutex_);
      if (!work.failure) work.failure = std::current_exception();
    }
  }

  void serve() {
    std::unique_lock lock(mutex_);
    while (true) {
      wake_.wait(lock, [&] { return stopping_ || (loop_ && loop_->next < loop_->count); });
      if (stopping_) return;
      loop& work = *loop_;
      ++work.helpers;
      lock.unlock();
      take_part(work);
      lock.lock();
      if (--work.helpers == 0) done_.notify_one();
    }
  }

  index_t threads_;
  std::mutex turn_;  ///< held while a loop runs
  std::mutex mutex_; ///< for what follows, of a loop its helpers and its failure
  std::condition_variable wake_;
  std::condition_variable done_;
  loop* loop_ = nullptr;
  bool stopping_ = false;
  std::vector<std::thread> workers_; ///< of the caller that holds turn_
};

} // namespace v0
} // namespace ressvd
