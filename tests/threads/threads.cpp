// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/dense.hpp"
#include "support/eigen_backends.hpp"
#include "support/placed.hpp"
#include "support/problem.hpp"

namespace {

/// A backend whose context has this many threads and shares all that can be shared.
template <class B>
B on_threads(ressvd::index_t threads) {
  return B(std::make_shared<ressvd::host_context>(
      ressvd::host_context_options{.threads = threads, .worth_sharing = 0}));
}

/// The whole way from activations to factors, by every method and algorithm, in a context of its
/// own; everything that comes out.
template <class B>
std::vector<support::dense> compress_all(const support::dense& w, const support::dense& x,
                                         ressvd::index_t rank, std::uint64_t seed,
                                         ressvd::index_t threads = 1) {
  using namespace support;
  namespace methods = ressvd::methods;
  using T = typename B::scalar;
  B be = on_threads<B>(threads);
  const placed<T, B> pw(be, w, layout::row_major, 1);
  const placed<float, B> px(be, x);
  ressvd::gram_accumulator<B> sums(be, x.rows());
  sums.add(px.view(), ressvd::token_order::features_by_tokens);
  ressvd::calibration<B> input(be, std::move(sums));
  const auto& whitening = input.whitening();
  std::vector<dense> results{values_of(be, input.gram()), values_of(be, whitening.factor)};
  const auto keep = [&](const auto& pair) {
    results.push_back(values_of(be, pair.u));
    results.push_back(values_of(be, pair.v));
  };
  const auto run = [&](auto method, ressvd::svd_algorithm algorithm) {
    method.options.algorithm = algorithm;
    keep(input.compress(pw.view(), method, ressvd::at_rank(rank)).factors);
  };
  for (const auto algorithm :
       {ressvd::svd_algorithm::exact, ressvd::svd_algorithm::gram, ressvd::svd_algorithm::subspace,
        ressvd::svd_algorithm::deflated_gram}) {
    run(methods::svd{}, algorithm);
    run(methods::asvd{}, algorithm);
    run(methods::tempered{}, algorithm);
    run(methods::ressvd{}, algorithm);
  }
  const auto basis =
      ressvd::truncated_svd(be, pw.view(), {}, whitening.metric(), rank,
                            {.algorithm = ressvd::svd_algorithm::subspace, .seed = seed});
  results.push_back(values_of(be, basis.q));
  return results;
}

} // namespace

TEMPLATE_LIST_TEST_CASE("threads with contexts of their own compute what one thread computes",
                        "[threads]", test_backends) {
  using namespace support;
  using T = typename TestType::scalar;
  constexpr std::size_t count = 4;
  std::array<dense, count> w;
  std::array<dense, count> x;
  std::array<std::vector<dense>, count> expected;
  std::array<std::vector<dense>, count> actual;
  const auto run = [&](std::size_t i) {
    return compress_all<TestType>(w[i], x[i], 8 + static_cast<index_t>(i), i);
  };
  for (std::size_t i = 0; i < count; ++i) {
    const auto n = static_cast<index_t>(64 + 8 * i);
    w[i] = rounded<T>(random_normal(80, n, i));
    x[i] = rounded<float>(activations(n, 100, 10 + i, {.outlier_channels = 1}));
    expected[i] = run(i);
  }
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < count; ++i)
    threads.emplace_back([&, i] { actual[i] = run(i); });
  for (std::thread& thread : threads)
    thread.join();
  for (std::size_t i = 0; i < count; ++i) {
    INFO("matrix " << i);
    CHECK(actual[i] == expected[i]);
  }
}

TEMPLATE_LIST_TEST_CASE("threads may read the same weights, whitening and basis", "[threads]",
                        test_backends) {
  using namespace support;
  using T = typename TestType::scalar;
  TestType be = on_threads<TestType>(1);
  const dense x = activations(60, 90, 3);
  const placed<T, TestType> w(be, rounded<T>(random_normal(50, 60, 4)), layout::row_major, 2);
  const placed<double, TestType> gram(be, x * transpose(x));
  const auto whitening = ressvd::whiten(be, gram.view());
  const auto basis = ressvd::truncated_svd(be, w.view(), {}, whitening.metric(), 20);
  const auto read = [&](index_t rank) {
    TestType own = on_threads<TestType>(1);
    const auto pair = ressvd::slice(own, w.view(), basis, rank);
    const auto loss = ressvd::weighted_loss(own, w.view(), pair, whitening.metric());
    return std::pair(values_of(own, pair).product(), loss.absolute);
  };
  std::array<std::pair<dense, double>, 4> actual;
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < actual.size(); ++i)
    threads.emplace_back([&, i] { actual[i] = read(5 * static_cast<index_t>(i + 1)); });
  for (std::thread& thread : threads)
    thread.join();
  for (std::size_t i = 0; i < actual.size(); ++i)
    CHECK(actual[i] == read(5 * static_cast<index_t>(i + 1)));
}

TEMPLATE_LIST_TEST_CASE("equal seeds give equal bits on any number of threads", "[threads]",
                        test_backends) {
  using namespace support;
  using T = typename TestType::scalar;
  // Large enough for products, rotations and reductions to be divided.
  const dense x = rounded<float>(activations(530, 600, 5, {.outlier_channels = 4}));
  const dense w = rounded<T>(random_normal(420, 530, 6));
  const auto alone = compress_all<TestType>(w, x, 90, 7);
  for (const index_t threads : {1, 2, 3, 8}) {
    INFO(threads << " threads");
    CHECK(compress_all<TestType>(w, x, 90, 7, threads) == alone);
  }
  // The last result is the one that begins with random numbers.
  CHECK_FALSE(compress_all<TestType>(w, x, 90, 8).back() == alone.back());
}

// All forms of a product, with rows and columns left over from whole tiles.
TEMPLATE_LIST_TEST_CASE("a product is the same bits on any number of threads", "[threads]",
                        test_backends) {
  using namespace support;
  using T = typename TestType::scalar;
  using ressvd::op;
  constexpr index_t m = 331;
  constexpr index_t n = 517;
  constexpr index_t k = 403;
  for (const op oa : {op::none, op::transpose}) {
    for (const op ob : {op::none, op::transpose}) {
      const auto product = [&](index_t threads) {
        auto be = on_threads<TestType>(threads);
        auto a = oa == op::none ? be.allocate(m, k) : be.allocate(k, m);
        auto b = ob == op::none ? be.allocate(k, n) : be.allocate(n, k);
        auto c = be.allocate(m, n);
        be.random_normal(a.ref(), 1);
        be.random_normal(b.ref(), 2);
        be.random_normal(c.ref(), 3);
        be.gemm(oa, ob, T{-2}, a.ref(), b.ref(), static_cast<T>(0.5), c.ref());
        return values_of(be, c);
      };
      const dense alone = product(1);
      for (const index_t threads : {2, 3, 16}) {
        INFO("transposed " << (oa == op::transpose) << (ob == op::transpose) << ", " << threads
                           << " threads");
        CHECK(product(threads) == alone);
      }
    }
  }
}

// Wide matrices by parts of the sum, tall and transposed ones by parts of the result.
TEMPLATE_LIST_TEST_CASE("threads share a product with a vector", "[threads]", test_backends) {
  using namespace support;
  using T = typename TestType::scalar;
  using ressvd::op;
  for (const auto& [m, n] : {std::pair<index_t, index_t>{230, 1100}, {1100, 230}, {1, 250'000}}) {
    for (const op o : {op::none, op::transpose}) {
      const dense a = rounded<T>(random_normal(m, n, 1));
      const dense shown = o == op::none ? a : transpose(a);
      const dense x = rounded<T>(random_normal(shown.cols(), 1, 2));
      const dense y = rounded<T>(random_normal(shown.rows(), 1, 3));
      const dense expected = -2.0 * (shown * x) + 0.5 * y;
      const dense magnitude = 2.0 * (absolute(shown) * absolute(x)) + 0.5 * absolute(y);
      const double gamma =
          static_cast<double>(shown.cols() + 4) * std::numeric_limits<T>::epsilon();
      std::vector<dense> results;
      for (const index_t threads : {1, 2, 3}) {
        INFO(m << " x " << n << ", transposed " << (o == op::transpose) << ", " << threads
               << " threads");
        auto be = on_threads<TestType>(threads);
        const placed<T, TestType> pa(be, a, ressvd::layout::col_major, 2);
        const placed<T, TestType> px(be, x);
        placed<T, TestType> py(be, y, ressvd::layout::col_major, 3);
        be.gemm(o, op::none, T{-2}, pa.block(), px.block(), static_cast<T>(0.5), py.block());
        CHECK(error_in_bounds(py.values(be), expected, gamma * magnitude) <= 1);
        CHECK(py.surroundings_unchanged(be));
        results.push_back(py.values(be));
        CHECK(results.back() == results.front());
      }
    }
  }
}

// Large enough for the matrix-vector products of its reduction to be divided among threads.
TEMPLATE_LIST_TEST_CASE("threads share the reduction of an eigenproblem", "[threads]",
                        test_backends) {
  using namespace support;
  using T = typename TestType::scalar;
  using ressvd::op;
  constexpr index_t n = 680;
  TestType be;
  auto a = be.allocate(n, n);
  be.random_normal(a.ref(), 9);
  auto h = be.allocate(n, n);
  be.gemm(op::none, op::transpose, T{1} / n, a.ref(), a.ref(), T{0}, h.ref());
  const auto factor = [&](index_t threads) {
    auto own = on_threads<TestType>(threads);
    auto q = own.allocate(n, n);
    own.copy(std::as_const(h).view(), q.ref());
    std::vector<double> values(n);
    own.eigh(q.ref(), values);
    return std::pair(std::move(q), std::move(values));
  };
  // Orthogonal transformations of a matrix of norm at most 4.
  const double tolerance = 4 * 4 * std::sqrt(n) * std::numeric_limits<T>::epsilon();
  const auto alone = factor(1);
  const auto [q, values] = factor(2);
  CHECK(values == alone.second);
  // H·Q = Q·Λ, each column on its own.
  auto residual = be.allocate(n, n);
  auto scaled = be.allocate(n, n);
  be.copy(q.view(), scaled.ref());
  for (index_t j = 0; j < n; ++j)
    be.scale(static_cast<T>(values[static_cast<std::size_t>(j)]), scaled.ref().col_range(j, 1));
  be.copy(std::as_const(scaled).view(), residual.ref());
  be.gemm(op::none, op::none, T{1}, h.ref(), q.ref(), T{-1}, residual.ref());
  CHECK(be.max_abs(std::as_const(residual).view()) <= tolerance);
  be.gemm(op::transpose, op::none, T{1}, q.ref(), q.ref(), T{0}, residual.ref());
  be.shift_diagonal(residual.ref(), T{-1});
  CHECK(be.max_abs(std::as_const(residual).view()) <= tolerance);
  const auto again = factor(2);
  CHECK(again.second == values);
  CHECK(std::equal(again.first.data(), again.first.data() + n * n, q.data()));
}

TEMPLATE_LIST_TEST_CASE("the number of threads changes results by no more than rounding",
                        "[threads]", test_backends) {
  using namespace support;
  namespace methods = ressvd::methods;
  using T = typename TestType::scalar;
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
  const auto run = [&](index_t threads) {
    TestType be = on_threads<TestType>(threads);
    const placed<T, TestType> pw(be, w, layout::row_major, 1);
    const placed<float, TestType> px(be, x);
    ressvd::gram_accumulator<TestType> sums(be, n);
    sums.add(px.view(), ressvd::token_order::features_by_tokens);
    ressvd::calibration<TestType> input(be, std::move(sums));
    outcome o{values_of(be, input.gram()), {}};
    const auto keep = [&](auto method, ressvd::svd_algorithm algorithm) {
      method.options.algorithm = algorithm;
      const auto result = input.compress(pw.view(), method, ressvd::at_rank(rank));
      o.products.push_back(values_of(be, result.factors).product());
    };
    for (const auto algorithm : {ressvd::svd_algorithm::exact, ressvd::svd_algorithm::gram}) {
      keep(methods::svd{}, algorithm);
      keep(methods::svd_llm{}, algorithm);
    }
    return o;
  };
  const outcome one = run(1);
  const double plain_change = 2 * truncation_change(w, w, rank, eps<TestType>);
  for (const index_t threads : {2, 3, 4}) {
    INFO(threads << " threads");
    const outcome many = run(threads);
    const dense bound = (2 * 501 * static_cast<double>(std::numeric_limits<float>::epsilon())) *
                        (absolute(x) * absolute(transpose(x)));
    CHECK(error_in_bounds(many.gram, one.gram, bound) <= 1);
    for (std::size_t i = 0; i < one.products.size(); i += 2) {
      CHECK(distance(many.products[i], one.products[i]) <= plain_change);
      // The metric of outlier channels determines the loss, and hardly the subspace.
      const double loss = loss_of(w, one.products[i + 1], x);
      const double tolerance = loss_tolerance(loss, 2 * projection_error(w, x, eps<TestType>)) +
                               2 * gram_algorithm_loss(w * x, rank);
      CHECK_THAT(loss_of(w, many.products[i + 1], x), WithinAbs(loss, tolerance));
    }
  }
}
