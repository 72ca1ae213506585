// SPDX-License-Identifier: Apache-2.0
//
// The triangular factor of the activations by streaming QR.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "ressvd/whitening/qr_accumulator.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/dense.hpp"
#include "support/placed.hpp"

namespace qr_suite {

using namespace support;
using ressvd::qr_accumulator;
using ressvd::token_order;

inline constexpr double double_eps = std::numeric_limits<double>::epsilon();

/// R from `steps` reductions of 2n × n matrices is exact for activations that differ by this,
/// relative to ‖X‖_F.
inline double factor_tolerance(index_t features, index_t tokens, double epsilon) {
  const auto steps = static_cast<double>(tokens / features + 2);
  return std::sqrt(steps) * householder_tolerance(2 * features, features, epsilon);
}

inline bool upper_triangular(const dense& r) {
  for (index_t j = 0; j < r.cols(); ++j) {
    for (index_t i = j + 1; i < r.rows(); ++i) {
      if (r(i, j) != 0) return false;
    }
  }
  return true;
}

template <class B>
void check_factor(B& be, qr_accumulator<B>& accumulator, const dense& x) {
  const dense r = values_of(be, accumulator.factor());
  const double tolerance = factor_tolerance(x.rows(), x.cols(), eps<B>);
  CHECK(upper_triangular(r));
  CHECK(distance(transpose(r) * r, x * transpose(x)) <= 2 * tolerance * squared_norm(x));
  CHECK(accumulator.tokens() == x.cols());
}

} // namespace qr_suite

TEMPLATE_LIST_TEST_CASE("the streamed triangle has the Gram of all batches", "[qr_accumulator]",
                        test_backends) {
  using namespace qr_suite;
  auto be = make_backend<TestType>();
  for_each_storage([&]<class U>(U) {
    for (const index_t n : {1, 7, 30}) {
      const dense x = rounded<U>(activations(n, 100, 1, {.outlier_channels = n / 7}));
      for (const token_order order :
           {token_order::tokens_by_features, token_order::features_by_tokens}) {
        for (const layout stored : {layout::row_major, layout::col_major}) {
          INFO(storage_name<U>() << ", " << n << " features");
          qr_accumulator<TestType> factor(be, n);
          index_t first = 0;
          for (const index_t count : {1, 29, 0, 63, 7}) { // around and beyond the buffer's size
            const dense batch = part(x, 0, first, n, count);
            const placed<U, TestType> p(
                be, order == token_order::tokens_by_features ? transpose(batch) : batch, stored, 2);
            factor.add(p.view(), order);
            CHECK(p.unchanged(be));
            first += count;
          }
          check_factor(be, factor, x);
        }
      }
    }
  });
}

TEMPLATE_LIST_TEST_CASE("reading the triangle does not disturb the stream", "[qr_accumulator]",
                        test_backends) {
  using namespace qr_suite;
  auto be = make_backend<TestType>();
  const dense x = rounded<float>(random_normal(9, 40, 2));
  qr_accumulator<TestType> factor(be, 9);
  CHECK(values_of(be, factor.factor()) == dense(9, 9));
  for (const index_t first : {0, 13, 26}) {
    const index_t count = first == 26 ? 14 : 13;
    const placed<float, TestType> p(be, part(x, 0, first, 9, count));
    factor.add(p.view(), token_order::features_by_tokens);
    check_factor(be, factor, part(x, 0, 0, 9, first + count));
  }
}

TEMPLATE_LIST_TEST_CASE("fewer tokens than features and dead channels are no errors",
                        "[qr_accumulator]", test_backends) {
  using namespace qr_suite;
  auto be = make_backend<TestType>();
  for (const index_t tokens : {1, 5, 40}) {
    const dense x =
        rounded<float>(activations(20, tokens, 3, {.outlier_channels = 1, .dead_channels = 3}));
    const placed<float, TestType> p(be, x);
    qr_accumulator<TestType> factor(be, 20);
    factor.add(p.view(), token_order::features_by_tokens);
    check_factor(be, factor, x);
  }
}

TEMPLATE_LIST_TEST_CASE("the triangle keeps singular values that the Gram loses",
                        "[qr_accumulator]", test_backends) {
  using namespace qr_suite;
  using wide = ressvd::wide_backend<TestType>;
  auto be = make_backend<TestType>();
  // σ from 1 to 1e-11: squared, the last ones are below double's eps of the first.
  const dense x = with_spectrum(12, 60, geometric_spectrum(12, 1e11), 4);
  const placed<double, TestType> p(be, x);
  qr_accumulator<wide> factor(wide(be), 12);
  factor.add(p.view(), token_order::features_by_tokens);
  const std::vector<double> exact = svd(x).s;
  const std::vector<double> streamed = svd(values_of(be, factor.factor())).s;
  const double tolerance = factor_tolerance(12, 60, double_eps) * frobenius(x);
  REQUIRE(tolerance < 0.1 * exact.back()); // the check below says something about the last one
  CHECK(distance(column(streamed), column(exact)) <= tolerance);
}

TEMPLATE_LIST_TEST_CASE("merged triangles have the Gram of both streams", "[qr_accumulator]",
                        test_backends) {
  using namespace qr_suite;
  auto be = make_backend<TestType>();
  const dense x = rounded<float>(random_normal(11, 70, 5));
  const placed<float, TestType> p(be, x);
  for (const index_t first_part : {0, 4, 35, 70}) {
    qr_accumulator<TestType> a(be, 11);
    qr_accumulator<TestType> b(be, 11);
    a.add(p.view().part(0, 0, 11, first_part), token_order::features_by_tokens);
    b.add(p.view().part(0, first_part, 11, 70 - first_part), token_order::features_by_tokens);
    a.merge(b);
    check_factor(be, a, x);
    check_factor(be, b, part(x, 0, first_part, 11, 70 - first_part));
  }
}

TEMPLATE_LIST_TEST_CASE("wrong calls of the QR accumulator are refused", "[qr_accumulator]",
                        test_backends) {
  using namespace qr_suite;
  using T = typename TestType::scalar;
  using view = ressvd::matrix_view<const T, typename TestType::space>;
  auto be = make_backend<TestType>();
  CHECK_THROWS_WITH(qr_accumulator<TestType>(be, 0), contains_text("0 features"));
  qr_accumulator<TestType> factor(be, 4, "layer 7");
  dense x = random_normal(10, 4, 6);
  const placed<T, TestType> good(be, x, layout::row_major);
  factor.add(good.view());
  const dense before = values_of(be, factor.factor());
  x(3, 2) = std::numeric_limits<double>::quiet_NaN();
  const placed<T, TestType> bad(be, x, layout::row_major);
  CHECK_THROWS_AS(factor.add(bad.view()), ressvd::nonfinite_error);
  CHECK_THROWS_WITH(factor.add(bad.view()), contains_text("layer 7 (10 x 4) has "));
  CHECK_THROWS_WITH(factor.add(good.view(), token_order::features_by_tokens),
                    contains_text("layer 7 has 10 features, expected 4"));
  CHECK_THROWS_WITH(factor.add(view{nullptr, 3, 4, 4}), contains_text("null data pointer"));
  qr_accumulator<TestType> other(be, 5);
  CHECK_THROWS_WITH(factor.merge(other),
                    contains_text("cannot merge a QR factor of 5 features into one of 4"));
  CHECK(factor.tokens() == 10);
  CHECK(values_of(be, factor.factor()) == before);
}
