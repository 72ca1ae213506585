// SPDX-License-Identifier: Apache-2.0
#include "support/cuda_backends.hpp"

#include <numeric>
#include <utility>
#include <vector>

#include "ressvd/truncated_svd/pivoted_pair.hpp"
#include "suites/low_rank.hpp"

// The product in one launch: aligned and not, one row at a time and two.
TEMPLATE_TEST_CASE("factors by rows are read once for a few vectors", "[low_rank][cuda]", float,
                   ressvd::bfloat16) {
  using namespace low_rank_suite;
  using F = TestType;
  using be_type = ressvd::cuda_backend<float>;
  auto be = make_backend<be_type>();
  struct shape {
    index_t m, n, r;
  };
  for (const auto [m, n, r] : {shape{70, 300, 19}, {1, 17, 1}, {130, 9, 3}}) {
    for (const index_t batch : {1, 3, 9}) {
      for (const bool aligned : {true, false}) {
        INFO(m << " x " << n << ", rank " << r << ", " << batch << " vectors, aligned " << aligned);
        const dense u = rounded<F>(random_normal(m, r, 1));
        const dense v = rounded<F>(random_normal(r, n, 2));
        const dense x = rounded<ressvd::bfloat16>(random_normal(n, batch, 3));
        const dense b = rounded<float>(random_normal(m, 1, 4));
        const auto padding = [&](index_t line) {
          return aligned ? (line + 7) / 8 * 8 - line : index_t{1};
        };
        const index_t guard = aligned ? 8 : 7;
        const placed<F, be_type> pu(be, u, layout::row_major, padding(r), guard);
        const placed<F, be_type> pv(be, v, layout::row_major, padding(n), guard);
        const placed<ressvd::bfloat16, be_type> px(be, x, layout::col_major, padding(n), guard);
        const placed<float, be_type> pb(be, b);
        placed<float, be_type> py(be, dense(m, batch, not_a_number), layout::col_major, 3);
        // Sums of n and r terms in float, by at most 32 partial sums.
        const dense shift = b * dense(1, batch, 1.0);
        const dense magnitude = absolute(u) * (absolute(v) * absolute(x)) + absolute(shift);
        const dense bound = (static_cast<double>(n + r + 3) * eps<be_type>)*magnitude;
        CHECK(be.low_rank_product(pu.view(), pv.view(), px.view(), py.target(), pb.view()) ==
              (batch <= 8));
        if (batch <= 8) CHECK(error_in_bounds(py.values(be), u * (v * x) + shift, bound) <= 1);
        for (int repeat = 0; repeat < 2; ++repeat) { // the barrier's word serves again
          ressvd::apply(be, pu.view(), pv.view(), px.view(), py.target());
          CHECK(error_in_bounds(py.values(be), u * (v * x), bound) <= 1);
        }
        CHECK(py.surroundings_unchanged(be));
      }
    }
  }
}

// The rows of u and v are those of y in an order of their own.
TEMPLATE_TEST_CASE("a pivoted pair by rows is read once for a few vectors", "[low_rank][cuda]",
                   float, ressvd::half, ressvd::bfloat16) {
  using namespace low_rank_suite;
  using F = TestType;
  using be_type = ressvd::cuda_backend<float>;
  auto be = make_backend<be_type>();
  struct shape {
    index_t m, n, r;
  };
  for (const auto [m, n, r] : {shape{70, 300, 19}, {9, 40, 9}, {2, 17, 1}, {130, 9, 3}}) {
    std::vector<index_t> order(static_cast<std::size_t>(m));
    std::iota(order.begin(), order.end(), index_t{0});
    for (index_t i = 0; i < m; ++i)
      std::swap(order[static_cast<std::size_t>(i)], order[static_cast<std::size_t>(i * 7 % m)]);
    const auto indices = be.indices(order);
    for (const index_t batch : {1, 3, 9}) {
      for (const bool aligned : {true, false}) {
        INFO(m << " x " << n << ", rank " << r << ", " << batch << " vectors, aligned " << aligned);
        const dense c = rounded<F>(random_normal(m - r, r, 1));
        const dense z = rounded<F>(random_normal(r, n, 2));
        const dense x = rounded<ressvd::bfloat16>(random_normal(n, batch, 3));
        const dense b = rounded<float>(random_normal(m, 1, 4));
        dense u(m, r);
        for (index_t i = 0; i < m; ++i) {
          for (index_t j = 0; j < r; ++j)
            u(order[static_cast<std::size_t>(i)], j) = i < r ? (i == j ? 1.0 : 0.0) : c(i - r, j);
        }
        const index_t padding = aligned ? 8 - n % 8 : 1;
        const index_t guard = aligned ? 8 : 7;
        const placed<F, be_type> pc(be, c, layout::row_major, aligned ? 8 - r % 8 : 1, guard);
        const placed<F, be_type> pz(be, z, layout::row_major, padding, guard);
        const placed<ressvd::bfloat16, be_type> px(be, x, layout::col_major, padding, guard);
        const placed<float, be_type> pb(be, b);
        placed<float, be_type> py(be, dense(m, batch, not_a_number), layout::col_major, 3);
        const dense shift = b * dense(1, batch, 1.0);
        const dense magnitude = absolute(u) * (absolute(z) * absolute(x)) + absolute(shift);
        const dense bound = (static_cast<double>(n + r + 3) * eps<be_type>)*magnitude;
        CHECK(be.low_rank_product(pc.view(), pz.view(), px.view(), py.target(), pb.view(),
                                  &indices) == (batch <= 8));
        if (batch <= 8) CHECK(error_in_bounds(py.values(be), u * (z * x) + shift, bound) <= 1);
        ressvd::apply(be, pc.view(), pz.view(), indices, px.view(), py.target());
        CHECK(error_in_bounds(py.values(be), u * (z * x), bound) <= 1);
        ressvd::apply(be, pc.view(), pz.view(), indices, px.view(), py.target(), pb.view());
        CHECK(error_in_bounds(py.values(be), u * (z * x) + shift, bound) <= 1);
        CHECK(py.surroundings_unchanged(be));
      }
    }
  }
}

TEST_CASE("the product in one launch leaves other layouts to cuBLAS", "[low_rank][cuda]") {
  using namespace low_rank_suite;
  using be_type = ressvd::cuda_backend<float>;
  auto be = make_backend<be_type>();
  const auto serves = [&](layout order_u, layout order_x, layout order_y) {
    const placed<float, be_type> u(be, random_normal(6, 2, 1), order_u);
    const placed<float, be_type> v(be, random_normal(2, 5, 2), order_u);
    const placed<float, be_type> x(be, random_normal(5, 3, 3), order_x);
    placed<float, be_type> y(be, dense(6, 3, 1.0), order_y);
    const bool served = be.low_rank_product(u.view(), v.view(), x.view(), y.target(), {});
    if (!served) CHECK(y.unchanged(be));
    return served;
  };
  constexpr auto rows = layout::row_major;
  constexpr auto columns = layout::col_major;
  CHECK(serves(rows, columns, columns));
  CHECK_FALSE(serves(columns, columns, columns));
  CHECK_FALSE(serves(rows, rows, columns));
  CHECK_FALSE(serves(rows, columns, rows));
}
