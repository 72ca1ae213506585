// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>
#include <vector>

#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/dense.hpp"
#include "support/eigen_backends.hpp"
#include "support/placed.hpp"
#include "support/problem.hpp"

namespace {

/// Restores the number of threads.
class thread_count {
 public:
  explicit thread_count(int count) : before_(support::threads()) { support::set_threads(count); }
  thread_count(const thread_count&) = delete;
  thread_count& operator=(const thread_count&) = delete;
  ~thread_count() { support::set_threads(before_); }

 private:
  int before_;
};

} // namespace

TEMPLATE_LIST_TEST_CASE("the number of threads changes results by no more than rounding",
                        "[threads]", test_backends) {
  using namespace support;
  namespace methods = ressvd::methods;
  using T = typename TestType::scalar;
  using wide = ressvd::wide_backend<TestType>;
  // Large enough for Eigen to divide its products among threads.
  constexpr index_t m = 180;
  constexpr index_t n = 220;
  constexpr index_t rank = 40;
  const dense x = rounded<float>(activations(n, 500, 1, {.outlier_channels = 4}));
  // σ_rank is well separated, so that the result is determined.
  std::vector<double> spectrum = geometric_spectrum(m, 100);
  for (index_t i = 0; i < rank; ++i)
    spectrum[static_cast<std::size_t>(i)] += 1;
  const dense w = rounded<T>(with_spectrum(m, n, spectrum, 2));

  struct outcome {
    dense gram;
    std::vector<dense> products;
  };
  const auto run = [&](int threads) {
    const thread_count limited(threads);
    TestType be;
    const placed<T, TestType> pw(be, w, layout::row_major, 1);
    const placed<float, TestType> px(be, x);
    ressvd::gram_accumulator<wide> sums(wide(be), n);
    sums.add(px.view(), ressvd::token_order::features_by_tokens);
    const auto whitening = ressvd::whiten(be, sums.gram());
    outcome o{values_of(be, sums.gram()), {}};
    for (const auto algorithm : {ressvd::svd_algorithm::exact, ressvd::svd_algorithm::gram}) {
      o.products.push_back(
          values_of(be, methods::svd(be, pw.view(), {},
                                     {.target = {.rank = rank}, .algorithm = algorithm})
                            .factors)
              .product());
      o.products.push_back(
          values_of(be, methods::svd_llm(be, pw.view(), {.whitening = &whitening},
                                         {.target = {.rank = rank}, .algorithm = algorithm})
                            .factors)
              .product());
    }
    return o;
  };
  const outcome one = run(1);
  const double plain_change = 2 * truncation_change(w, w, rank, eps<TestType>);
  for (const int threads : {2, 3, 4}) {
    INFO(threads << " threads");
    const outcome many = run(threads);
    const dense bound = (2 * 501 * static_cast<double>(std::numeric_limits<float>::epsilon())) *
                        (absolute(x) * absolute(transpose(x)));
    CHECK(error_in_bounds(many.gram, one.gram, bound) <= 1);
    for (std::size_t i = 0; i < one.products.size(); i += 2) {
      CHECK(distance(many.products[i], one.products[i]) <= plain_change);
      // In the metric of outlier channels the loss is determined, its subspace hardly.
      const double loss = loss_of(w, one.products[i + 1], x);
      const double tolerance = loss_tolerance(loss, 2 * projection_error(w, x, eps<TestType>)) +
                               2 * gram_algorithm_loss(w * x, rank);
      CHECK_THAT(loss_of(w, many.products[i + 1], x), WithinAbs(loss, tolerance));
    }
  }
}
