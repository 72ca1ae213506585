// SPDX-License-Identifier: Apache-2.0
//
// The streaming Gram accumulator.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "ressvd/whitening/gram.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/dense.hpp"
#include "support/placed.hpp"
#include "support/special_values.hpp"

namespace gram_suite {

using namespace support;
using ressvd::gram_accumulator;
using ressvd::token_order;

inline constexpr double float_eps = std::numeric_limits<float>::epsilon();
inline constexpr double double_eps = std::numeric_limits<double>::epsilon();

/// Componentwise bound on the sum of products of x and y over their tokens: products of float and
/// of the 16-bit types are formed in float, 2048 tokens at a time at most.
template <class U>
dense sum_bound(const dense& x, const dense& y, double sum_eps) {
  const double product_eps = std::is_same_v<U, double> ? sum_eps : float_eps;
  const auto terms = static_cast<double>(std::min<index_t>(x.cols(), 2048) + 1);
  const auto sums = static_cast<double>(x.cols() + 2);
  return (terms * product_eps + sums * sum_eps) * (absolute(x) * absolute(transpose(y)));
}

inline dense tokens_of(const dense& x, index_t first, index_t count) {
  return part(x, 0, first, x.rows(), count);
}

/// Feeds the tokens [first, first + count) of x as a batch of the given order and layout.
template <class U, class B, class A>
void feed(B& be, A& accumulator, const dense& x, index_t first, index_t count, token_order order,
          layout stored, index_t padding) {
  const dense batch = tokens_of(x, first, count);
  const placed<U, B> p(be, order == token_order::tokens_by_features ? transpose(batch) : batch,
                       stored, padding);
  accumulator.add(p.view(), order);
  CHECK(p.unchanged(be));
}

/// Small integers: sums of their products are exact in every scalar.
inline dense integers(index_t rows, index_t cols, std::uint64_t seed) {
  dense a = random_normal(rows, cols, seed);
  for (index_t j = 0; j < cols; ++j) {
    for (index_t i = 0; i < rows; ++i)
      a(i, j) = std::round(2 * a(i, j));
  }
  return a;
}

} // namespace gram_suite

TEMPLATE_LIST_TEST_CASE("the Gram of batches is X·Xᵀ for every storage, order and layout", "[gram]",
                        test_backends) {
  using namespace gram_suite;
  using wide = ressvd::wide_backend<TestType>;
  auto be = make_backend<TestType>();
  constexpr index_t n = 21;
  constexpr index_t tokens = 83;
  for_each_storage([&]<class U>(U) {
    const dense x = rounded<U>(activations(n, tokens, 1, {.outlier_channels = 2}));
    for (const token_order order :
         {token_order::tokens_by_features, token_order::features_by_tokens}) {
      for (const layout stored : {layout::row_major, layout::col_major}) {
        INFO(storage_name<U>() << ", "
                               << (order == token_order::tokens_by_features ? "tokens x features"
                                                                            : "features x tokens")
                               << (stored == layout::row_major ? " by rows" : " by columns"));
        gram_accumulator<wide> sums(wide(be), n, {.channel_means = true});
        index_t first = 0;
        for (const index_t count : {40, 0, 1, 42}) {
          feed<U>(be, sums, x, first, count, order, stored, 3);
          first += count;
        }
        CHECK(sums.tokens() == tokens);
        CHECK(sums.features() == n);
        const dense g = values_of(be, sums.gram());
        CHECK(error_in_bounds(g, x * transpose(x), sum_bound<U>(x, x, double_eps)) <= 1);
        CHECK(g == transpose(g));

        const dense mean = (1.0 / tokens) * (absolute(x) * dense(tokens, 1, 1.0));
        CHECK(error_in_bounds(values_of(be, sums.mean_abs()), mean,
                              (tokens + 2) * double_eps * mean) <= 1);
      }
    }
  });
}

TEMPLATE_LIST_TEST_CASE("a Gram can be summed in the backend's scalar", "[gram]", test_backends) {
  using namespace gram_suite;
  auto be = make_backend<TestType>();
  const dense x = rounded<float>(random_normal(9, 50, 2));
  gram_accumulator<TestType> sums(be, 9, {.channel_means = true, .cross_features = 9});
  const placed<float, TestType> batch(be, x);
  sums.add(batch.view(), batch.view(), token_order::features_by_tokens);
  const dense bound = sum_bound<float>(x, x, eps<TestType>);
  CHECK(error_in_bounds(values_of(be, sums.gram()), x * transpose(x), bound) <= 1);
  CHECK(error_in_bounds(values_of(be, sums.cross()), x * transpose(x), bound) <= 1);
}

TEMPLATE_LIST_TEST_CASE("the cross-Gram is the product with the second input", "[gram]",
                        test_backends) {
  using namespace gram_suite;
  using wide = ressvd::wide_backend<TestType>;
  auto be = make_backend<TestType>();
  for_each_storage([&]<class U>(U) {
    for (const index_t other : {5, 12, 31}) {
      INFO(storage_name<U>() << ", " << other << " features in the second input");
      const dense x = rounded<U>(random_normal(12, 70, 3));
      const dense y = rounded<U>(random_normal(other, 70, 4));
      gram_accumulator<wide> sums(wide(be), 12, {.cross_features = other});
      for (const index_t first : {0, 35}) {
        const placed<U, TestType> px(be, transpose(tokens_of(x, first, 35)), layout::row_major, 2);
        const placed<U, TestType> py(be, transpose(tokens_of(y, first, 35)), layout::row_major, 1);
        sums.add(px.view(), py.view());
        CHECK(px.unchanged(be));
        CHECK(py.unchanged(be));
      }
      CHECK(error_in_bounds(values_of(be, sums.gram()), x * transpose(x),
                            sum_bound<U>(x, x, double_eps)) <= 1);
      CHECK(error_in_bounds(values_of(be, sums.cross()), y * transpose(x),
                            sum_bound<U>(y, x, double_eps)) <= 1);
    }
  });
}

TEMPLATE_LIST_TEST_CASE("the second input may be a part of the first one's buffer", "[gram]",
                        test_backends) {
  using namespace gram_suite;
  using wide = ressvd::wide_backend<TestType>;
  auto be = make_backend<TestType>();
  const dense x = rounded<float>(random_normal(12, 30, 5));
  const placed<float, TestType> p(be, x);
  gram_accumulator<wide> sums(wide(be), 12, {.cross_features = 4});
  sums.add(p.view(), p.view().part(0, 0, 4, 30), token_order::features_by_tokens);
  const dense top = part(x, 0, 0, 4, 30);
  CHECK(error_in_bounds(values_of(be, sums.cross()), top * transpose(x),
                        sum_bound<float>(top, x, double_eps)) <= 1);
}

TEMPLATE_LIST_TEST_CASE("values far from 1 keep their relative precision", "[gram]",
                        test_backends) {
  using namespace gram_suite;
  using wide = ressvd::wide_backend<TestType>;
  auto be = make_backend<TestType>();
  const auto check = [&]<class U>(U, double magnitude) {
    INFO(storage_name<U>() << " of magnitude " << magnitude);
    const dense x = rounded<U>(magnitude * random_normal(7, 40, 6));
    const placed<U, TestType> p(be, x);
    gram_accumulator<wide> sums(wide(be), 7, {.cross_features = 7});
    sums.add(p.view(), p.view(), token_order::features_by_tokens);
    const dense bound = sum_bound<U>(x, x, double_eps);
    CHECK(error_in_bounds(values_of(be, sums.gram()), x * transpose(x), bound) <= 1);
    CHECK(error_in_bounds(values_of(be, sums.cross()), x * transpose(x), bound) <= 1);
  };
  for (const double magnitude : {1e-30, 1e-18, 1e17, 1e30}) {
    check(float{}, magnitude);
    check(ressvd::bfloat16{}, magnitude);
    check(double{}, magnitude);
  }
  check(ressvd::half{}, 1e-7); // subnormals
  check(ressvd::half{}, 1e4);
}

TEMPLATE_LIST_TEST_CASE("long streams do not saturate", "[gram][long]", test_backends) {
  using namespace gram_suite;
  using wide = ressvd::wide_backend<TestType>;
  auto be = make_backend<TestType>();
  // 17·2^20 ones: a sum in float would stay at 2^24.
  constexpr index_t batch = 1 << 20;
  const placed<float, TestType> ones(be, dense(batch, 1, 1.0), layout::row_major);
  gram_accumulator<wide> sums(wide(be), 1);
  for (int i = 0; i < 17; ++i)
    sums.add(ones.view());
  CHECK(values_of(be, sums.gram())(0, 0) == 17.0 * batch);
  CHECK(sums.tokens() == 17 * batch);
}

TEMPLATE_LIST_TEST_CASE("merging is the same as accumulating in one place", "[gram]",
                        test_backends) {
  using namespace gram_suite;
  auto be = make_backend<TestType>();
  const ressvd::gram_options options{.channel_means = true, .cross_features = 6};
  const dense x = integers(8, 60, 7);
  const dense y = integers(6, 60, 8);
  const auto accumulate = [&](index_t first, index_t count) {
    gram_accumulator<TestType> sums(be, 8, options);
    const placed<float, TestType> px(be, tokens_of(x, first, count));
    const placed<float, TestType> py(be, tokens_of(y, first, count));
    sums.add(px.view(), py.view(), token_order::features_by_tokens);
    return sums;
  };
  auto whole = accumulate(0, 60);
  auto merged = accumulate(0, 25);
  merged.merge(accumulate(25, 35));
  CHECK(merged.tokens() == 60);
  CHECK(values_of(be, merged.gram()) == x * transpose(x));
  CHECK(values_of(be, merged.gram()) == values_of(be, whole.gram()));
  CHECK(values_of(be, merged.cross()) == values_of(be, whole.cross()));
  CHECK(values_of(be, merged.mean_abs()) == values_of(be, whole.mean_abs()));
  merged.merge(gram_accumulator<TestType>(be, 8, options));
  CHECK(values_of(be, merged.gram()) == values_of(be, whole.gram()));
}

TEMPLATE_LIST_TEST_CASE("a Gram survives the way through its state", "[gram]", test_backends) {
  using namespace gram_suite;
  auto be = make_backend<TestType>();
  const dense x = rounded<float>(random_normal(8, 60, 9));
  const dense y = rounded<float>(random_normal(5, 60, 10));
  for (const bool everything : {false, true}) {
    const auto add = [&](auto& sums, index_t first, index_t count) {
      const placed<float, TestType> px(be, tokens_of(x, first, count));
      const placed<float, TestType> py(be, tokens_of(y, first, count));
      if (everything) {
        sums.add(px.view(), py.view(), token_order::features_by_tokens);
      } else {
        sums.add(px.view(), token_order::features_by_tokens);
      }
    };
    gram_accumulator<TestType> sums(
        be, 8, {.channel_means = everything, .cross_features = everything ? 5 : 0});
    add(sums, 0, 33);
    const ressvd::gram_state state = sums.state();
    CHECK(state.features == 8);
    CHECK(state.tokens == 33);
    CHECK(state.cross.size() == (everything ? 40u : 0u));
    CHECK(state.abs_sum.size() == (everything ? 8u : 0u));
    auto restored = gram_accumulator<TestType>::from_state(be, state);
    CHECK(restored.tokens() == 33);
    CHECK(values_of(be, restored.gram()) == values_of(be, sums.gram()));

    // Both go on alike.
    add(sums, 33, 27);
    add(restored, 33, 27);
    CHECK(restored.tokens() == 60);
    CHECK(values_of(be, restored.gram()) == values_of(be, sums.gram()));
    if (everything) {
      CHECK(values_of(be, restored.cross()) == values_of(be, sums.cross()));
      CHECK(values_of(be, restored.mean_abs()) == values_of(be, sums.mean_abs()));
    }
  }
}

TEMPLATE_LIST_TEST_CASE("a spoiled state is refused", "[gram]", test_backends) {
  using namespace gram_suite;
  auto be = make_backend<TestType>();
  const ressvd::gram_state good{.features = 2, .tokens = 3, .gram = {2, 1, 1, 2}};
  const auto restore = [&](auto change) {
    ressvd::gram_state state = good;
    change(state);
    gram_accumulator<TestType>::from_state(be, state);
  };
  CHECK_NOTHROW(restore([](auto&) {}));
  CHECK_THROWS_WITH(restore([](auto& s) { s.gram.pop_back(); }),
                    contains_text("gram has 3 values, expected 4"));
  CHECK_THROWS_WITH(restore([](auto& s) { s.abs_sum = {1}; }),
                    contains_text("abs_sum has 1 values, expected 2"));
  CHECK_THROWS_WITH(restore([](auto& s) { s.cross_features = 3; }),
                    contains_text("cross has 0 values, expected 6"));
  CHECK_THROWS_WITH(restore([](auto& s) { s.tokens = -1; }), contains_text("-1 tokens"));
  CHECK_THROWS_WITH(restore([](auto& s) { s.features = 0; }), contains_text("0 features"));
  CHECK_THROWS_AS(restore([](auto& s) { s.gram[1] = not_a_number; }), ressvd::nonfinite_error);
  CHECK_THROWS_WITH(restore([](auto& s) { s.gram[1] = infinity; }),
                    contains_text("the Gram state's gram has inf"));
}

TEMPLATE_LIST_TEST_CASE("a non-finite batch is refused by name and changes nothing", "[gram]",
                        test_backends) {
  using namespace gram_suite;
  auto be = make_backend<TestType>();
  const dense x = random_normal(6, 20, 11);
  for_each_storage([&]<class U>(U) {
    gram_accumulator<TestType> sums(
        be, 6, {.name = "model.layers.3.mlp.up_proj", .channel_means = true, .cross_features = 6});
    const placed<U, TestType> good(be, transpose(x), layout::row_major, 2);
    sums.add(good.view(), good.view());
    const auto before = sums.state();
    for (const double bad : {not_a_number, infinity, -infinity}) {
      INFO(storage_name<U>() << ", " << bad);
      dense spoiled = transpose(x);
      spoiled(13, 4) = bad;
      const placed<U, TestType> p(be, spoiled, layout::row_major, 2);
      CHECK_THROWS_AS(sums.add(p.view(), good.view()), ressvd::nonfinite_error);
      CHECK_THROWS_WITH(sums.add(p.view(), good.view()),
                        contains_text("model.layers.3.mlp.up_proj (20 x 6) has "));
      CHECK_THROWS_WITH(sums.add(good.view(), p.view()),
                        contains_text("model.layers.3.mlp.up_proj (second input) (20 x 6) has "));
      if constexpr (std::is_same_v<typename TestType::space, ressvd::host_space>) {
        CHECK_THROWS_WITH(sums.add(p.view(), good.view()), contains_text("at row 13, column 4"));
      }
    }
    const auto after = sums.state();
    CHECK(after.gram == before.gram);
    CHECK(after.cross == before.cross);
    CHECK(after.abs_sum == before.abs_sum);
    CHECK(after.tokens == before.tokens);
  });
}

TEMPLATE_LIST_TEST_CASE("with the deferred check the reading finds a non-finite batch", "[gram]",
                        test_backends) {
  using namespace gram_suite;
  auto be = make_backend<TestType>();
  gram_accumulator<TestType> sums(be, 3,
                                  {.name = "inputs",
                                   .channel_means = true,
                                   .cross_features = 3,
                                   .check = ressvd::finite_check::deferred});
  dense x = random_normal(3, 10, 12);
  const placed<float, TestType> good(be, x);
  sums.add(good.view(), good.view(), token_order::features_by_tokens);
  CHECK_NOTHROW(sums.gram());
  x(1, 7) = infinity;
  const placed<float, TestType> bad(be, x);
  CHECK_NOTHROW(sums.add(bad.view(), good.view(), token_order::features_by_tokens));
  CHECK_THROWS_AS(sums.gram(), ressvd::nonfinite_error);
  CHECK_THROWS_WITH(sums.gram(), contains_text("inputs"));
  CHECK_THROWS_AS(sums.cross(), ressvd::nonfinite_error);
  CHECK_THROWS_AS(sums.mean_abs(), ressvd::nonfinite_error);
  CHECK_THROWS_AS(sums.state(), ressvd::nonfinite_error);
}

TEMPLATE_LIST_TEST_CASE("wrong calls of the Gram accumulator are refused", "[gram]",
                        test_backends) {
  using namespace gram_suite;
  using T = typename TestType::scalar;
  using view = ressvd::matrix_view<const T, typename TestType::space>;
  auto be = make_backend<TestType>();
  gram_accumulator<TestType> plain(be, 4, {.name = "x", .channel_means = false});
  gram_accumulator<TestType> cross(be, 4, {.name = "x", .cross_features = 2});
  const placed<T, TestType> batch(be, random_normal(10, 4, 13), layout::row_major);
  const placed<T, TestType> other(be, random_normal(9, 2, 14), layout::row_major);

  CHECK_THROWS_WITH(gram_accumulator<TestType>(be, 0), contains_text("0 features"));
  CHECK_THROWS_WITH(gram_accumulator<TestType>(be, 3, {.cross_features = -1}),
                    contains_text("cross-Gram of -1 features"));
  CHECK_THROWS_WITH(plain.add(batch.view(), token_order::features_by_tokens),
                    contains_text("x has 10 features, expected 4"));
  CHECK_THROWS_WITH(plain.add(batch.view(), batch.view()), contains_text("no cross-Gram"));
  CHECK_THROWS_WITH(cross.add(batch.view()), contains_text("second input"));
  CHECK_THROWS_WITH(cross.add(batch.view(), batch.view()),
                    contains_text("x (second input) has 4 features, expected 2"));
  CHECK_THROWS_WITH(cross.add(batch.view(), other.view()),
                    contains_text("x has 10 tokens, its second input 9"));
  CHECK_THROWS_WITH(plain.add(view{nullptr, 10, 4, 4}),
                    contains_text("x (10 x 4) has a null data pointer"));
  view narrow = batch.view();
  narrow.ld = 3;
  CHECK_THROWS_WITH(plain.add(narrow),
                    contains_text("x (10 x 4, row-major) has leading dimension 3, less than 4"));
  CHECK_THROWS_WITH(plain.add(view{nullptr, -1, 4, 4}),
                    contains_text("x has negative dimensions (-1 x 4)"));
  // Offsets in these would overflow, or reach beyond what an address can hold.
  constexpr index_t far = index_t{1} << 62;
  for (const view& huge : {view{batch.view().data, far, 4, 4}, view{batch.view().data, 4, far, far},
                           view{batch.view().data, 3, 4, far}}) {
    CHECK_THROWS_WITH(plain.add(huge), contains_text("exceeds the address space"));
  }
  CHECK_THROWS_AS(gram_accumulator<TestType>(be, index_t{1} << 31), ressvd::workspace_error);
  CHECK_THROWS_WITH(gram_accumulator<TestType>(be, index_t{1} << 32),
                    contains_text("a block of 4294967296 x 4294967296 elements of "));
  CHECK_THROWS_WITH(plain.merge(cross), contains_text("cannot merge a Gram of 4 features"));
  CHECK_THROWS_WITH(plain.cross(), contains_text("x: no cross-Gram was accumulated"));
  CHECK_THROWS_WITH(plain.mean_abs(), contains_text("x: no channel means were accumulated"));
  gram_accumulator<TestType> means(be, 4, {.name = "x", .channel_means = true});
  CHECK_THROWS_WITH(means.mean_abs(), contains_text("x: no tokens were accumulated"));
  CHECK_THROWS_WITH(means.gram(), contains_text("x: no tokens were accumulated"));
  CHECK(means.state().tokens == 0);
  CHECK(plain.tokens() == 0);
  CHECK(cross.tokens() == 0);
}
