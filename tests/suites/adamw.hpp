// SPDX-License-Identifier: Apache-2.0
//
// AdamW against the formulas in double, and what they imply. A backend's own file includes its
// backends, which define `test_backends`, and then this header.
#pragma once

#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "ressvd/refinement/adamw.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/dense.hpp"
#include "support/placed.hpp"
#include "support/special_values.hpp"

namespace adamw_suite {

using namespace support;
using ressvd::adamw;
using ressvd::adamw_options;
using ressvd::adamw_parameter;

/// A parameter with room around its columns, which nothing may write to.
template <class B>
struct trained {
  using T = typename B::scalar;
  trained(B& be, const dense& c, const dense& g, const dense& towards = {})
      : value(be, c, layout::col_major, 3),
        gradient(be, g, layout::col_major, 1),
        centre(be, towards, layout::col_major, 2),
        pulled(towards.rows() > 0) {}

  adamw_parameter<B> parameter() {
    return {value.block(), std::as_const(gradient).block(),
            pulled ? std::as_const(centre).block() : ressvd::const_block_of<B>{}};
  }

  placed<T, B> value;
  placed<T, B> gradient;
  placed<T, B> centre;
  bool pulled;
};

/// The formulas of the header, element by element.
class reference {
 public:
  reference(std::vector<dense> values, std::vector<dense> centres, const adamw_options& options)
      : values_(std::move(values)), centres_(std::move(centres)), options_(options) {
    for (const dense& value : values_) {
      m_.emplace_back(value.rows(), value.cols());
      v_.emplace_back(value.rows(), value.cols());
    }
  }

  void step(const std::vector<dense>& gradients, double rate) {
    ++t_;
    double squares = 0;
    for (const dense& g : gradients)
      squares += frobenius(g) * frobenius(g);
    const double norm = std::sqrt(squares);
    const double clip = norm > options_.largest_norm ? options_.largest_norm / norm : 1;
    for (std::size_t k = 0; k < values_.size(); ++k) {
      for (index_t j = 0; j < values_[k].cols(); ++j) {
        for (index_t i = 0; i < values_[k].rows(); ++i) {
          const double g = clip * gradients[k](i, j);
          double& m = m_[k](i, j);
          double& v = v_[k](i, j);
          m = options_.beta1 * m + (1 - options_.beta1) * g;
          v = options_.beta2 * v + (1 - options_.beta2) * g * g;
          const double mean = m / (1 - std::pow(options_.beta1, t_));
          const double square = v / (1 - std::pow(options_.beta2, t_));
          double& x = values_[k](i, j);
          const double centre = centres_[k].rows() > 0 ? centres_[k](i, j) : 0;
          x -= rate * mean / (std::sqrt(square) + options_.epsilon) +
               rate * options_.decay * (x - centre);
        }
      }
    }
  }

  const std::vector<dense>& values() const { return values_; }

 private:
  std::vector<dense> values_, centres_, m_, v_;
  adamw_options options_;
  int t_ = 0;
};

} // namespace adamw_suite

TEMPLATE_LIST_TEST_CASE("AdamW follows its formulas", "[adamw]", test_backends) {
  using namespace adamw_suite;
  using B = TestType;
  using T = typename B::scalar;
  auto be = make_backend<B>();
  for (const adamw_options& options :
       {adamw_options{}, adamw_options{.decay = 0.3}, adamw_options{.largest_norm = 0.5},
        adamw_options{.beta1 = 0, .beta2 = 0.5, .epsilon = 1e-3, .decay = 2, .largest_norm = 3}}) {
    INFO("decay " << options.decay << ", norm " << options.largest_norm);
    const std::vector<dense> start{rounded<T>(random_normal(9, 5, 1)),
                                   rounded<T>(random_normal(1, 1, 2)),
                                   rounded<T>(random_normal(70, 33, 3))};
    const std::vector<dense> centres{rounded<T>(random_normal(9, 5, 4)), dense(), start[2]};
    std::vector<trained<B>> held;
    for (std::size_t k = 0; k < start.size(); ++k)
      held.emplace_back(be, start[k], dense(start[k].rows(), start[k].cols()), centres[k]);
    std::vector<adamw_parameter<B>> parameters;
    for (trained<B>& one : held)
      parameters.push_back(one.parameter());
    adamw<B> optimiser(be, parameters, options);
    reference expected(start, centres, options);
    constexpr double rate = 0.01;
    constexpr int steps = 20;
    for (int t = 0; t < steps; ++t) {
      std::vector<dense> gradients;
      for (std::size_t k = 0; k < start.size(); ++k) {
        const auto seed = 10 + 3 * static_cast<std::uint64_t>(t) + k;
        gradients.push_back(rounded<T>(random_normal(start[k].rows(), start[k].cols(), seed)));
        const placed<T, B> now(be, gradients.back());
        be.copy(now.view(), held[k].gradient.block());
      }
      const auto report = optimiser.step(rate);
      CHECK(report.finite);
      CHECK(report.gradient_norm > 0);
      expected.step(gradients, rate);
    }
    CHECK(optimiser.steps() == steps);
    for (std::size_t k = 0; k < start.size(); ++k) {
      // Each step adds the rounding of the value and a few relative ones of a step, which is at
      // most 10 rates (a running mean over the root of one that forgets later) and the pull.
      const double bound = steps * eps<B> * (4 + 100 * rate) * 6;
      dense bounds(start[k].rows(), start[k].cols());
      for (index_t j = 0; j < bounds.cols(); ++j)
        for (index_t i = 0; i < bounds.rows(); ++i)
          bounds(i, j) = bound;
      CHECK(error_in_bounds(held[k].value.values(be), expected.values()[k], bounds) < 1);
      CHECK(held[k].value.surroundings_unchanged(be));
      CHECK(held[k].centre.unchanged(be));
    }
  }
}

TEMPLATE_LIST_TEST_CASE("the first step moves every element by the rate", "[adamw]",
                        test_backends) {
  using namespace adamw_suite;
  using B = TestType;
  auto be = make_backend<B>();
  for (const double scale : {1e-4, 1.0, 1e6, 1e12}) {
    INFO("gradients of " << scale);
    dense gradient = scale * random_normal(12, 7, 1);
    for (index_t j = 0; j < 7; ++j)
      for (index_t i = 0; i < 12; ++i)
        if (std::abs(gradient(i, j)) < 0.01 * scale) gradient(i, j) = scale;
    trained<B> one(be, dense(12, 7), gradient);
    adamw<B> optimiser(be, {one.parameter()});
    optimiser.step(0.125);
    const dense now = one.value.values(be);
    for (index_t j = 0; j < 7; ++j) {
      for (index_t i = 0; i < 12; ++i) {
        // ε is 1 % of the smallest gradient.
        const double wanted = gradient(i, j) > 0 ? -0.125 : 0.125;
        CHECK(std::abs(now(i, j) - wanted) <= 0.125 * (0.0101 + 8 * eps<B>));
      }
    }
    // Gradients that are forgotten leave a first step behind.
    optimiser.forget();
    CHECK(optimiser.steps() == 0);
    optimiser.step(0.125);
    CHECK(distance(one.value.values(be), 2.0 * now) <= 16 * eps<B> * frobenius(now));
  }
}

TEMPLATE_LIST_TEST_CASE("without gradients AdamW only decays, towards the centre", "[adamw]",
                        test_backends) {
  using namespace adamw_suite;
  using B = TestType;
  using T = typename B::scalar;
  auto be = make_backend<B>();
  const dense start = rounded<T>(random_normal(6, 4, 1));
  const dense centre = rounded<T>(random_normal(6, 4, 2));
  trained<B> still(be, start, dense(6, 4));
  trained<B> pulled(be, start, dense(6, 4), centre);
  trained<B> shrunk(be, start, dense(6, 4));
  adamw<B> without(be, {still.parameter()});
  adamw<B> with(be, {pulled.parameter(), shrunk.parameter()}, {.decay = 5});
  double before = distance(start, centre);
  for (int t = 0; t < 10; ++t) {
    CHECK(without.step(0.1).gradient_norm == 0);
    with.step(0.1);
    // Half of what is left goes at each step.
    const double now = distance(pulled.value.values(be), centre);
    CHECK(std::abs(now - before / 2) <= 16 * eps<B> * frobenius(start));
    before = now;
  }
  CHECK(still.value.unchanged(be));
  CHECK(distance(shrunk.value.values(be), 0x1p-10 * start) <= 64 * eps<B> * frobenius(start));
}

TEMPLATE_LIST_TEST_CASE("clipped gradients are those of the norm asked for", "[adamw]",
                        test_backends) {
  using namespace adamw_suite;
  using B = TestType;
  using T = typename B::scalar;
  auto be = make_backend<B>();
  const dense g = rounded<T>(random_normal(8, 8, 3));
  // With ε far above the gradients a step is in proportion to them.
  const auto moved = [&](const dense& gradient, double largest) {
    trained<B> a(be, dense(8, 8), gradient);
    trained<B> b(be, dense(8, 8), gradient);
    adamw<B> optimiser(be, {a.parameter(), b.parameter()},
                       {.epsilon = 1e6, .largest_norm = largest});
    const auto report = optimiser.step(1e6);
    CHECK(std::abs(report.gradient_norm - std::sqrt(2.0) * frobenius(gradient)) <=
          1e-6 * report.gradient_norm);
    return frobenius(a.value.values(be));
  };
  const double norm = std::sqrt(2.0) * frobenius(g);
  CHECK(std::abs(moved(g, norm / 4) - frobenius(g) / 4) <= 1e-4 * frobenius(g));
  CHECK(std::abs(moved(g, 2 * norm) - frobenius(g)) <= 1e-4 * frobenius(g));
}

TEMPLATE_LIST_TEST_CASE("gradients that are not finite change nothing", "[adamw]", test_backends) {
  using namespace adamw_suite;
  using B = TestType;
  auto be = make_backend<B>();
  for (const double bad : {not_a_number, infinity, -infinity}) {
    dense gradient = random_normal(5, 3, 1);
    gradient(4, 1) = bad;
    trained<B> good(be, random_normal(4, 4, 2), random_normal(4, 4, 3), random_normal(4, 4, 4));
    trained<B> spoilt(be, random_normal(5, 3, 5), gradient);
    adamw<B> optimiser(be, {good.parameter(), spoilt.parameter()}, {.decay = 0.1});
    const auto report = optimiser.step(0.1);
    CHECK(!report.finite);
    CHECK(optimiser.steps() == 0);
    CHECK(good.value.unchanged(be));
    CHECK(spoilt.value.unchanged(be));
  }
}

TEMPLATE_LIST_TEST_CASE("AdamW refuses what makes no sense", "[adamw]", test_backends) {
  using namespace adamw_suite;
  using B = TestType;
  auto be = make_backend<B>();
  trained<B> one(be, dense(4, 3), dense(4, 3));
  trained<B> other(be, dense(3, 4), dense(3, 4));
  const auto make = [&](const adamw_options& options) {
    return adamw<B>(be, {one.parameter()}, options);
  };
  CHECK_THROWS_WITH(make({.beta1 = 1}), contains_text("beta1 = 1"));
  CHECK_THROWS_WITH(make({.beta1 = -0.1}), contains_text("beta1"));
  CHECK_THROWS_WITH(make({.beta2 = not_a_number}), contains_text("beta2"));
  CHECK_THROWS_WITH(make({.epsilon = 0}), contains_text("epsilon"));
  CHECK_THROWS_WITH(make({.decay = -1}), contains_text("decay of -1"));
  CHECK_THROWS_WITH(make({.largest_norm = 0}), contains_text("norm of 0"));
  CHECK_THROWS_AS(make({.decay = infinity}), std::invalid_argument);
  auto optimiser = make({});
  CHECK_THROWS_WITH(optimiser.step(-1), contains_text("rate of -1"));
  CHECK_THROWS_AS(optimiser.step(not_a_number), std::invalid_argument);
  adamw_parameter<B> wrong = one.parameter();
  wrong.gradient = other.parameter().gradient;
  CHECK_THROWS_WITH(adamw<B>(be, {wrong}), contains_text("gradient is 3 x 4, expected 4 x 3"));
  wrong = one.parameter();
  wrong.centre = other.parameter().gradient;
  CHECK_THROWS_WITH(adamw<B>(be, {wrong}), contains_text("centre"));
  // Nothing to train is nothing to do.
  adamw<B> idle(be, {});
  CHECK(idle.step(1).gradient_norm == 0);
}

TEST_CASE("the rate rises in a line and falls along a cosine", "[adamw]") {
  using ressvd::warmup_cosine;
  for (const auto& [n, w] : {std::pair<int, int>{100, 20}, {7, 0}, {5, 5}, {3, 10}, {1, 0}}) {
    INFO(n << " steps, " << w << " to warm up");
    double before = 0;
    for (int t = 0; t < n; ++t) {
      const double now = warmup_cosine(t, n, w);
      CHECK(now > 0);
      CHECK(now <= 1);
      if (t < w) CHECK(std::abs(now - (t + 1.0) / w) < 1e-12);
      if (t > w) CHECK(now < before);
      if (t == w) CHECK(now == 1);
      before = now;
    }
  }
  CHECK(std::abs(warmup_cosine(60, 100, 20) - 0.5) < 1e-12);
  CHECK_THROWS_AS(warmup_cosine(3, 3, 0), std::invalid_argument);
  CHECK_THROWS_AS(warmup_cosine(-1, 3, 0), std::invalid_argument);
  CHECK_THROWS_AS(warmup_cosine(0, 3, -1), std::invalid_argument);
}
