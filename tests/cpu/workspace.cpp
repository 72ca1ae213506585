// SPDX-License-Identifier: Apache-2.0
#include "ressvd/core/workspace.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/eigen_backends.hpp"
#include "support/placed.hpp"

namespace {

struct counts {
  int allocations = 0;
  std::size_t held = 0; ///< bytes
};

/// Memory that keeps count and refuses more than `limit` bytes at once.
struct counting_memory {
  counts* counted;
  std::size_t limit = SIZE_MAX;

  void* allocate(std::size_t bytes) const {
    if (counted->held + bytes > limit) throw std::bad_alloc();
    ++counted->allocations;
    counted->held += bytes;
    return ::operator new(bytes);
  }
  void deallocate(void* p, std::size_t bytes) const noexcept {
    counted->held -= bytes;
    ::operator delete(p);
  }
};

using workspace = ressvd::workspace<counting_memory>;
using frame = ressvd::workspace_frame<counting_memory>;

bool aligned(const void* p) {
  return reinterpret_cast<std::uintptr_t>(p) % workspace::alignment == 0;
}

} // namespace

TEST_CASE("blocks are aligned and keep what is written while the stack grows", "[workspace]") {
  counts c;
  {
    workspace w(counting_memory{&c});
    frame f(w);
    struct taken {
      unsigned char* data;
      std::size_t bytes;
    };
    std::vector<taken> blocks;
    for (std::size_t i = 0; i < 60; ++i) {
      const std::size_t bytes = 1 + (i * 977) % 5000;
      auto* data = static_cast<unsigned char*>(w.take(bytes));
      REQUIRE(aligned(data));
      std::memset(data, static_cast<int>(i), bytes);
      blocks.push_back({data, bytes});
    }
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      CHECK(blocks[i].data[0] == i);
      CHECK(blocks[i].data[blocks[i].bytes - 1] == i);
    }
  }
  CHECK(c.held == 0);
}

TEST_CASE("frames nest and give back what was taken in them", "[workspace]") {
  counts c;
  workspace w(counting_memory{&c});
  frame outer(w);
  auto* a = static_cast<unsigned char*>(w.take(1000));
  std::memset(a, 1, 1000);
  void* first = nullptr;
  {
    frame inner(w);
    first = w.take(500);
    frame innermost(w);
    std::memset(w.take(100000), 2, 100000);
  }
  {
    frame inner(w);
    CHECK(w.take(500) == first);
  }
  CHECK(a[0] == 1);
  CHECK(a[999] == 1);
}

TEST_CASE("the peak counts what was in use at once", "[workspace]") {
  counts c;
  workspace w(counting_memory{&c});
  const std::size_t unit = workspace::alignment;
  {
    frame f(w);
    w.take(1); // rounded up to one unit
    {
      frame g(w);
      w.take(3 * unit);
    }
    w.take(2 * unit);
    CHECK(w.peak() == 4 * unit);
    w.reset_peak();
    CHECK(w.peak() == 3 * unit);
  }
  CHECK(w.peak() == 3 * unit);
}

TEST_CASE("the same demand a second time allocates at most once, a third time never",
          "[workspace]") {
  counts c;
  workspace w(counting_memory{&c});
  const auto demand = [&] {
    frame f(w);
    for (std::size_t i = 1; i <= 20; ++i)
      w.take(i * 1000);
  };
  demand();
  const int grown = c.allocations;
  CHECK(grown > 1);
  demand();
  CHECK(c.allocations <= grown + 1);
  const int settled = c.allocations;
  demand();
  CHECK(c.allocations == settled);
}

TEST_CASE("a fixed buffer is never left and says how much is missing", "[workspace]") {
  counts c;
  // An odd address: alignment costs up to 255 bytes of the buffer.
  std::vector<std::byte> buffer(4096 + 1);
  workspace w(buffer.data() + 1, 4096, counting_memory{&c});
  frame f(w);
  for (int i = 0; i < 3; ++i) {
    auto* p = static_cast<std::byte*>(w.take(1000));
    CHECK(aligned(p));
    CHECK(p >= buffer.data() + 1);
    CHECK(p + 1000 <= buffer.data() + buffer.size());
  }
  CHECK_THROWS_AS(w.take(2000), ressvd::workspace_error);
  CHECK_THROWS_WITH(w.take(2000), contains_text("workspace of 4096 bytes is too small: " +
                                                std::to_string(3 * 1024 + 2048) + " bytes"));
  CHECK_NOTHROW(w.take(256)); // a refusal changes nothing
  CHECK(c.allocations == 0);
}

TEST_CASE("a failed allocation leaves the workspace as it was", "[workspace]") {
  counts c;
  workspace w(counting_memory{&c, 10000});
  frame f(w);
  auto* a = static_cast<unsigned char*>(w.take(1000));
  std::memset(a, 7, 1000);
  CHECK_THROWS_AS(w.take(20000), std::bad_alloc);
  CHECK(a[999] == 7);
  CHECK_NOTHROW(w.take(100));
}

TEST_CASE("empty blocks cost nothing", "[workspace]") {
  counts c;
  workspace w(counting_memory{&c});
  frame f(w);
  w.take(0);
  CHECK(w.peak() == 0);
}

TEMPLATE_LIST_TEST_CASE("a kernel runs in a buffer of exactly its peak and in no smaller one",
                        "[workspace]", test_backends) {
  using namespace support;
  using T = typename TestType::scalar;
  const dense a = rounded<T>(random_normal(30, 40, 1));
  const dense f = random_normal(40, 40, 2);
  const auto run = [&](TestType be) {
    const placed<T, TestType> w(be, a);
    const placed<double, TestType> factor(be, f);
    using metric = ressvd::metric<ressvd::host_space>;
    const auto basis =
        ressvd::truncated_svd(be, w.view(), metric::identity(), metric::dense(factor.block()), 7);
    return values_of(be, basis.q);
  };
  TestType growing;
  const dense expected = run(growing);
  const std::size_t peak = growing.context()->scratch.peak();
  CHECK(peak >= 30 * 40 * sizeof(T)); // the weighted matrix at least

  const auto memory = std::make_unique<std::byte[]>(peak + 256);
  std::byte* buffer = memory.get();
  while (!aligned(buffer))
    ++buffer;
  const auto fixed = std::make_shared<ressvd::host_context>(buffer, peak);
  CHECK(run(TestType(fixed)) == expected);

  const auto short_of = std::make_shared<ressvd::host_context>(buffer, peak - 256);
  CHECK_THROWS_AS(run(TestType(short_of)), ressvd::workspace_error);
  CHECK_THROWS_WITH(run(TestType(short_of)),
                    contains_text("workspace of " + std::to_string(peak - 256) + " bytes"));
  CHECK(run(TestType(fixed)) == expected);
}

TEMPLATE_LIST_TEST_CASE("the truncated SVD stays within the workspace it states", "[workspace]",
                        test_backends) {
  using namespace support;
  using T = typename TestType::scalar;
  using metric = ressvd::metric<ressvd::host_space>;
  struct shape {
    ressvd::index_t m, n;
  };
  for (const shape& s : {shape{80, 80}, {60, 150}, {150, 60}}) {
    const ressvd::index_t m = s.m;
    const ressvd::index_t n = s.n;
    const auto peak = [&](ressvd::svd_algorithm algorithm) {
      TestType be;
      const placed<T, TestType> w(be, random_normal(m, n, 3));
      const placed<double, TestType> factor(be, identity(n));
      ressvd::truncated_svd(be, w.view(), {}, metric::triangular(factor.block()), 10,
                            {.algorithm = algorithm});
      return static_cast<ressvd::index_t>(be.context()->scratch.peak());
    };
    INFO(m << " x " << n);
    const ressvd::index_t shorter = std::min(m, n);
    // Roundings to the alignment, leaves of the triangular product, small vectors.
    const ressvd::index_t slack = 64 * 64 * 8 + 20 * 256 + 8 * (m + n) * 20;
    CHECK(peak(ressvd::svd_algorithm::exact) <=
          static_cast<ressvd::index_t>(sizeof(T)) * (3 * m * n + n * n) + slack);
    CHECK(peak(ressvd::svd_algorithm::gram) <=
          static_cast<ressvd::index_t>(sizeof(double)) * (2 * m * n + shorter * shorter) + slack);
  }
}
