// SPDX-License-Identifier: Apache-2.0
#include <limits>
#include <numeric>

#include "fixture.hpp"
#include "support/catch.hpp"

using namespace ressvd_llm;
using namespace ressvd_llm::testing;

namespace {

// −log softmax(row)[target] as in the definition.
double loss(std::span<const float> row, std::int32_t target) {
  double sum = 0.0;
  for (const float value : row)
    sum += std::exp(static_cast<double>(value));
  return std::log(sum) - static_cast<double>(row[static_cast<std::size_t>(target)]);
}

} // namespace

TEST_CASE("losses are those of the definition") {
  const std::int64_t vocab = 37;
  const std::vector<std::int32_t> targets = {0, 36, 5, 5};
  const std::vector<float> logits = random_values(4 * vocab, 1);
  const std::vector<double> losses = next_token_losses(logits.data(), targets, vocab);
  REQUIRE(losses.size() == targets.size());
  for (std::size_t i = 0; i < losses.size(); ++i)
    CHECK_THAT(losses[i],
               WithinAbs(loss(std::span(logits).subspan(i * 37, 37), targets[i]), 1e-13));

  // Shifting logits changes nothing, however far the exponentials would overflow.
  std::vector<float> shifted = logits;
  for (float& value : shifted)
    value = std::ldexp(std::round(std::ldexp(value, 10)), -10) + 1024.0f;
  std::vector<float> unshifted = shifted;
  for (float& value : unshifted)
    value -= 1024.0f;
  CHECK_THAT(next_token_losses(shifted.data(), targets, vocab)[1],
             WithinAbs(next_token_losses(unshifted.data(), targets, vocab)[1], 1e-12));

  const std::vector<float> equal(static_cast<std::size_t>(vocab), -3.5f);
  CHECK_THAT(next_token_losses(equal.data(), std::vector<std::int32_t>{7}, vocab)[0],
             WithinAbs(std::log(37.0), 1e-14));
}

TEST_CASE("a logit that is not finite is an error with its place") {
  const std::int64_t vocab = 50;
  for (const float bad :
       {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
        std::numeric_limits<float>::quiet_NaN()}) {
    std::vector<float> logits = random_values(3 * vocab, 1);
    logits[50 + 41] = bad;
    const std::vector<std::int32_t> targets = {1, 2, 3};
    CHECK_THROWS_WITH(next_token_losses(logits.data(), targets, vocab),
                      contains_text("logit 41 at position 1 is not finite"));
    const std::vector<float> good = random_values(3 * vocab, 2);
    CHECK_THROWS_WITH(kl_divergences(good.data(), logits.data(), 3, vocab),
                      contains_text("not finite"));
  }
  const std::vector<float> logits = random_values(vocab, 1);
  CHECK_THROWS_WITH(next_token_losses(logits.data(), std::vector<std::int32_t>{50}, vocab),
                    contains_text("target 50 outside the vocabulary of 50"));
}

TEST_CASE("the KL divergence is that of the definition") {
  const std::int64_t vocab = 29;
  const std::vector<float> p = random_values(5 * vocab, 1);
  std::vector<float> q = random_values(5 * vocab, 2);
  for (const double value : kl_divergences(p.data(), p.data(), 5, vocab))
    CHECK_THAT(value, WithinAbs(0.0, 1e-14));
  const std::vector<double> divergences = kl_divergences(p.data(), q.data(), 5, vocab);
  for (std::size_t row = 0; row < 5; ++row) {
    const auto ps = std::span(p).subspan(row * 29, 29);
    const auto qs = std::span(q).subspan(row * 29, 29);
    double expected = 0.0;
    for (std::int32_t i = 0; i < vocab; ++i)
      expected += std::exp(-loss(ps, i)) * (loss(qs, i) - loss(ps, i));
    CHECK(expected > 0.01);
    CHECK_THAT(divergences[row], WithinAbs(expected, 1e-13));
  }
}

TEST_CASE("windows are cut as the protocols say") {
  std::vector<std::int32_t> ids(23);
  std::iota(ids.begin(), ids.end(), 0);
  const token_windows apart = cut_windows(ids, {.length = 5});
  CHECK(apart.count == 4);
  CHECK(apart.length == 4);
  CHECK(apart.inputs ==
        std::vector<std::int32_t>{0, 1, 2, 3, 5, 6, 7, 8, 10, 11, 12, 13, 15, 16, 17, 18});
  for (std::size_t i = 0; i < apart.inputs.size(); ++i)
    CHECK(apart.targets[i] == apart.inputs[i] + 1);

  const token_windows joined = cut_windows(ids, {.length = 5, .overlap = 1, .max_windows = 3});
  CHECK(joined.count == 3);
  CHECK(joined.length == 5);
  CHECK(joined.inputs == std::vector<std::int32_t>(ids.begin(), ids.begin() + 15));
  CHECK(joined.targets == std::vector<std::int32_t>(ids.begin() + 1, ids.begin() + 16));

  // The last window needs one token more when windows overlap.
  CHECK(count_windows(10, {.length = 5}) == 2);
  CHECK(count_windows(10, {.length = 5, .overlap = 1}) == 1);
  CHECK(count_windows(11, {.length = 5, .overlap = 1}) == 2);

  CHECK_THROWS_WITH(count_windows(4, {.length = 5}),
                    contains_text("4 tokens do not fill one window of 5"));
  CHECK_THROWS_WITH(count_windows(5, {.length = 5, .overlap = 1}),
                    contains_text("5 tokens do not fill one window of 6"));
  CHECK_THROWS_WITH(count_windows(9, {.length = 1}), contains_text("predicts nothing"));
  CHECK_THROWS_WITH(count_windows(9, {.length = 4, .overlap = 2}), contains_text("overlap 2"));
}

TEST_CASE("perplexity is the exponential of the mean loss of transformers' logits") {
  for (const std::string& name : families) {
    CAPTURE(name);
    const fixture f(name);
    double sum = 0.0;
    std::int64_t predicted = 0;
    const auto vocab = static_cast<std::size_t>(f.config.vocab);
    const auto window = static_cast<std::size_t>(f.window());
    for (std::size_t i = 0; i + 1 < f.tokens.size(); ++i) {
      if (i % window == window - 1) continue;
      sum += loss(std::span(f.logits).subspan(i * vocab, vocab), f.tokens[i + 1]);
      ++predicted;
    }
    const language_model model = language_model::open(f.directory);
    cpu_forward engine(model.config());
    const token_windows windows = cut_windows(f.tokens, {.length = f.window()});
    const perplexity_result whole = perplexity(model, engine, windows);
    CHECK(whole.windows == 2);
    CHECK(whole.predicted == predicted);
    const double mean = sum / static_cast<double>(predicted);
    // The mean loss inherits the relative error of the logits, at most 1e-4 of some ten nats.
    CHECK_THAT(whole.mean_loss, WithinAbs(mean, 1e-3));
    CHECK(whole.perplexity == std::exp(whole.mean_loss));

    // The halves of the windows make up the whole.
    const std::int64_t half = f.window() / 2;
    const perplexity_result later = perplexity(model, engine, windows, {.context = half});
    double later_sum = 0.0;
    for (std::size_t i = 0; i + 1 < f.tokens.size(); ++i) {
      const std::size_t at = i % window;
      if (at < static_cast<std::size_t>(half) || at == window - 1) continue;
      later_sum += loss(std::span(f.logits).subspan(i * vocab, vocab), f.tokens[i + 1]);
    }
    CHECK(later.predicted == 2 * (f.window() - 1 - half));
    CHECK_THAT(later.mean_loss, WithinAbs(later_sum / static_cast<double>(later.predicted), 1e-3));
    CHECK_THROWS_AS(perplexity(model, engine, windows, {.context = f.window() - 1}),
                    std::invalid_argument);

    double fraction = 0.0;
    bool ascending = true;
    const perplexity_result rounds =
        perplexity(model, engine, windows, {.memory_limit = 1, .progress = [&](double done) {
                                              ascending = ascending && done >= fraction;
                                              fraction = done;
                                            }});
    CHECK_THAT(rounds.mean_loss, WithinAbs(whole.mean_loss, 1e-4));
    CHECK(ascending);
    CHECK(fraction == 1.0);
  }
}
