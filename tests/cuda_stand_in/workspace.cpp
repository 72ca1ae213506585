// SPDX-License-Identifier: Apache-2.0
//
// A member takes as much scratch as it asks for first, or as docs/cuda.md states: that much is
// enough, a byte less is not.
#include <algorithm>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "cuda_stand_in/confined.hpp"
#include "cuda_stand_in/stand_in.hpp"
#include "support/catch.hpp"
#include "support/dense.hpp"
#include "support/placed.hpp"

namespace {

using namespace support;
using ressvd::cuda_svd;

template <class B, class F>
void check_need(B& owner, std::size_t bytes, F run, const ressvd::cuda_options& options = {}) {
  INFO(bytes << " bytes");
  confined<B> enough(owner, bytes, options);
  run(enough.backend);
  CHECK(enough.backend.context()->scratch.peak() == bytes);
  confined<B> less(owner, bytes - 1, options);
  CHECK_THROWS_WITH(
      run(less.backend),
      contains_text("the workspace of") &&
          contains_text("bytes is too small: " + std::to_string(bytes) + " bytes are"));
}

/// Has the next gesvd fail, also where the call throws before it.
struct failing_gesvd {
  failing_gesvd() { stand_in::control.gesvd = stand_in::fault::unconverged; }
  failing_gesvd(const failing_gesvd&) = delete;
  failing_gesvd& operator=(const failing_gesvd&) = delete;
  ~failing_gesvd() { stand_in::control.gesvd = stand_in::fault::none; }
};

/// The documented number of bytes, as pieces are rounded up.
std::size_t rounded_up(index_t bytes) {
  return (static_cast<std::size_t>(bytes) + 255) / 256 * 256;
}

std::vector<double> numbers(index_t count) {
  return std::vector<double>(static_cast<std::size_t>(count));
}

} // namespace

TEMPLATE_LIST_TEST_CASE("decompositions take the bytes that are asked for", "[cuda]",
                        test_backends) {
  using T = typename TestType::scalar;
  auto owner = make_backend<TestType>();
  constexpr index_t n = 70;
  const dense x = random_normal(n, 2 * n, 1);
  const dense g = x * transpose(x);
  check_need(owner, owner.potrf_bytes(n), [&](TestType& be) {
    placed<T, TestType> c(owner, g);
    be.potrf(c.block());
  });
  check_need(owner, owner.eigh_bytes(n), [&](TestType& be) {
    placed<T, TestType> c(owner, g);
    auto values = numbers(n);
    be.eigh(c.block(), values);
  });
  if constexpr (std::is_same_v<T, float>) {
    check_need(owner, rounded_up(4 * 24 * 3), [&](TestType& be) { // rank 22, three vectors
      const placed<T, TestType> u(owner, random_normal(40, 22, 5), layout::row_major);
      const placed<T, TestType> v(owner, random_normal(22, 30, 6), layout::row_major);
      const placed<T, TestType> inputs(owner, random_normal(30, 3, 7));
      placed<T, TestType> y(owner, dense(40, 3));
      const bool served = be.low_rank_product(u.view(), v.view(), inputs.view(), y.target(), {});
      REQUIRE(served);
    });
  }
  check_need(owner, owner.lu_bytes(90, 66), [&](TestType& be) {
    placed<T, TestType> c(owner, random_normal(90, 66, 4));
    placed<T, TestType> r(owner, dense(66, 66));
    std::vector<index_t> order(90);
    be.lu(c.block(), r.block(), order);
  });
  for (const auto& [m, k] : {std::pair<index_t, index_t>{70, 70}, {90, 66}, {66, 90}, {5, 9}}) {
    INFO(m << " x " << k);
    const dense a = random_normal(m, k, 2);
    const index_t shorter = std::min(m, k);
    check_need(owner, owner.svd_bytes(m, k),
               [&, rows = m](TestType& be) {
                 placed<T, TestType> c(owner, a);
                 placed<T, TestType> u(owner, dense(rows, shorter));
                 auto values = numbers(shorter);
                 // Polar decomposition, which takes the most here, runs first or when the other
                 // fails.
                 const failing_gesvd fails;
                 be.svd(c.block(), values, u.block());
               },
               {.svd = cuda_svd::qr_iteration});
    if (m < k) continue;
    check_need(owner, owner.thin_qr_bytes(m, k), [&, cols = k](TestType& be) {
      placed<T, TestType> c(owner, a);
      placed<T, TestType> r(owner, dense(cols, cols));
      be.thin_qr(c.block(), r.block());
    });
  }
  check_need(owner, owner.triangularize_bytes(50, 80), [&](TestType& be) {
    placed<T, TestType> c(owner, random_normal(50, 80, 3));
    placed<T, TestType> r(owner, dense(80, 80));
    be.triangularize(c.block(), r.block());
  });
}

TEST_CASE("sums in double take one product in float", "[cuda]") {
  using backend = ressvd::cuda_backend<double>;
  backend owner;
  const auto check_products = [&](auto stored) {
    using U = decltype(stored);
    placed<U, backend> x(owner, random_normal(100, 30, 4));
    auto gram = owner.allocate(100, 100);
    owner.fill(gram, 0);
    check_need(owner, rounded_up(4 * 100 * 100),
               [&](backend& be) { be.add_gram(x.view(), gram.ref()); });
    // More columns than one product updates.
    constexpr index_t wide = 2100;
    placed<U, backend> few(owner, random_normal(3, 2, 5));
    placed<U, backend> many(owner, random_normal(wide, 2, 6));
    auto sum = owner.allocate(3, wide);
    owner.fill(sum, 0);
    check_need(owner, rounded_up(4 * 3 * 2048),
               [&](backend& be) { be.add_product(few.view(), many.view(), sum.ref()); });
  };
  check_products(float{});
  check_products(ressvd::half{});
  check_products(ressvd::bfloat16{});
}

TEST_CASE("sums in float of factors in double take these in float", "[cuda]") {
  using backend = ressvd::cuda_backend<float>;
  backend owner;
  placed<double, backend> x(owner, random_normal(5, 2100, 7));
  placed<double, backend> y(owner, random_normal(7, 2100, 8));
  auto sum = owner.allocate(5, 7);
  owner.fill(sum, 0);
  check_need(owner, rounded_up(4 * 5 * 2048) + rounded_up(4 * 7 * 2048),
             [&](backend& be) { be.add_product(x.view(), y.view(), sum.ref()); });
}

TEMPLATE_LIST_TEST_CASE("members that return numbers take their partial sums", "[cuda]",
                        test_backends) {
  using T = typename TestType::scalar;
  auto owner = make_backend<TestType>();
  placed<T, TestType> a(owner, random_normal(80, 70, 9));
  placed<T, TestType> larger(owner, random_normal(150, 100, 10)); // 59 blocks of 256
  const auto in = std::as_const(a).block();
  check_need(owner, 256, [&](TestType& be) { be.max_abs(a.view()); });
  check_need(owner, rounded_up(8 * 59), [&](TestType& be) {
    be.dot(std::as_const(larger).block(), std::as_const(larger).block());
  });
  check_need(owner, rounded_up(8 * 80), [&](TestType& be) {
    auto values = numbers(80);
    be.row_squared_norms(in, values);
  });
  check_need(owner, rounded_up(8 * 70), [&](TestType& be) {
    auto values = numbers(70);
    be.diagonal(in, values);
  });
}
