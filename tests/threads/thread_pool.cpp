// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "ressvd/backend/cpu/host_context.hpp"
#include "support/catch.hpp"

using ressvd::host_context;
using ressvd::host_context_options;
using ressvd::index_t;
using ressvd::thread_pool;

namespace {

/// How often a loop of `count` calls its body with each index.
template <class Loop>
std::vector<int> calls(index_t count, Loop loop) {
  std::vector<std::atomic<int>> seen(static_cast<std::size_t>(count));
  loop(count, [&](index_t i) { ++seen[static_cast<std::size_t>(i)]; });
  return {seen.begin(), seen.end()};
}

} // namespace

TEST_CASE("a pool calls the body once for every index", "[threads]") {
  for (const index_t threads : {1, 2, 5}) {
    thread_pool pool(threads);
    for (const index_t count : {0, 1, 2, 3, 7, 1000}) {
      for (int repeat = 0; repeat < 20; ++repeat) {
        const auto seen = calls(count, [&](index_t n, const auto& body) { pool.run(n, body); });
        CHECK(std::all_of(seen.begin(), seen.end(), [](int times) { return times == 1; }));
      }
    }
  }
}

TEST_CASE("a pool has no more threads at work than it was given or than there is work",
          "[threads]") {
  const auto threads_of = [](thread_pool& pool, index_t count) {
    std::mutex mutex;
    std::set<std::thread::id> seen;
    pool.run(count, [&](index_t) {
      const std::lock_guard lock(mutex);
      seen.insert(std::this_thread::get_id());
    });
    return seen;
  };
  thread_pool alone(1);
  CHECK(threads_of(alone, 50) == std::set{std::this_thread::get_id()});
  thread_pool many(8);
  for (int repeat = 0; repeat < 20; ++repeat)
    CHECK(threads_of(many, 2).size() <= 2);
  CHECK(threads_of(many, 1000).size() <= 8);
}

TEST_CASE("the threads of a pool work at the same time", "[threads]") {
  thread_pool pool(3);
  // Each body waits for the two others.
  std::atomic<int> arrived = 0;
  pool.run(3, [&](index_t) {
    ++arrived;
    while (arrived < 3)
      std::this_thread::yield();
  });
  CHECK(arrived == 3);
}

TEST_CASE("an exception of a body comes out of the loop, and the pool goes on", "[threads]") {
  for (const index_t threads : {1, 2, 4}) {
    thread_pool pool(threads);
    for (int repeat = 0; repeat < 20; ++repeat) {
      std::atomic<int> begun = 0;
      CHECK_THROWS_WITH(pool.run(10'000,
                                 [&](index_t i) {
                                   ++begun;
                                   if (i == 3) throw std::runtime_error("body 3");
                                 }),
                        "body 3");
      CHECK(begun >= 4);
      const auto seen = calls(100, [&](index_t n, const auto& body) { pool.run(n, body); });
      CHECK(std::count(seen.begin(), seen.end(), 1) == 100);
    }
  }
}

TEST_CASE("a loop within a loop runs on its own thread", "[threads]") {
  thread_pool pool(3);
  thread_pool other(3);
  std::atomic<int> inner = 0;
  std::atomic<int> elsewhere = 0;
  pool.run(6, [&](index_t) {
    const auto here = std::this_thread::get_id();
    for (thread_pool* nested : {&pool, &other}) {
      nested->run(5, [&](index_t) {
        ++inner;
        if (std::this_thread::get_id() != here) ++elsewhere;
      });
    }
  });
  CHECK(inner == 60);
  CHECK(elsewhere == 0);
}

TEST_CASE("several threads may hand loops to one pool", "[threads]") {
  thread_pool pool(3);
  std::array<std::atomic<int>, 4> total{};
  std::vector<std::thread> callers;
  for (auto& sum : total) {
    callers.emplace_back([&] {
      for (int repeat = 0; repeat < 50; ++repeat)
        pool.run(20, [&](index_t) { ++sum; });
    });
  }
  for (std::thread& caller : callers)
    caller.join();
  for (const auto& sum : total)
    CHECK(sum == 1000);
}

TEST_CASE("a context shares what is worth it", "[threads]") {
  const auto threads_of = [](host_context& context, double flops) {
    std::array<std::thread::id, 2> ids;
    std::atomic<int> arrived = 0;
    context.parallel_for(2, flops, [&](index_t i) {
      ids[static_cast<std::size_t>(i)] = std::this_thread::get_id();
      ++arrived;
      // Two threads meet here; one alone would wait for ever.
      while (context.worth_sharing() <= flops && arrived < 2)
        std::this_thread::yield();
    });
    return ids[0] == ids[1] ? 1 : 2;
  };
  host_context two(host_context_options{.threads = 2});
  CHECK(two.threads() == 2);
  CHECK(threads_of(two, 1e3) == 1);
  CHECK(threads_of(two, 1e9) == 2);
  CHECK(host_context().threads() >= 1);
  CHECK_THROWS_AS(host_context(host_context_options{.threads = -1}), std::invalid_argument);
}

TEST_CASE("an engine lends its loop to a context", "[threads]") {
  int lent = 0;
  host_context context(host_context_options{
      .threads = 4, .parallel_for = [&](index_t count, const ressvd::loop_body& body) {
        ++lent;
        for (index_t i = count; i-- > 0;)
          body(i);
      }});
  const auto seen =
      calls(9, [&](index_t n, const auto& body) { context.parallel_for(n, 1e9, body); });
  CHECK(std::count(seen.begin(), seen.end(), 1) == 9);
  CHECK(lent == 1);
  // Within its bodies nothing is handed to it again, and an exception goes through it.
  context.parallel_for(3, 1e9, [&](index_t) {
    CHECK(context.threads() == 1);
    context.parallel_for(3, 1e9, [](index_t) {});
  });
  CHECK(lent == 2);
  CHECK_THROWS_AS(context.parallel_for(2, 1e9, [](index_t) { throw std::runtime_error("body"); }),
                  std::runtime_error);
  context.parallel_for(3, 1e3, [](index_t) {});
  CHECK(lent == 3);
}
