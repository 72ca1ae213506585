// SPDX-License-Identifier: Apache-2.0
#include <limits>
#include <set>

#include "fixture.hpp"
#include "model/generation.hpp"
#include "support/catch.hpp"

using namespace ressvd_llm;
using namespace ressvd_llm::testing;

TEST_CASE("decoding with kept keys and values equals the full forward pass") {
  for (const std::string& name : families) {
    CAPTURE(name);
    const fixture f(name);
    const language_model model = language_model::open(f.directory);
    const auto vocab = static_cast<std::size_t>(f.config.vocab);
    const std::int64_t window = f.window();
    decoder state(model, f.windows(), window);
    // A prompt of seven tokens, one of two, then single tokens.
    std::int64_t at = 0;
    while (at < window) {
      const std::int64_t count = at == 0 ? 7 : at == 7 ? 2 : 1;
      std::vector<std::int32_t> ids;
      for (std::int64_t s = 0; s < f.windows(); ++s)
        for (std::int64_t i = 0; i < count; ++i)
          ids.push_back(f.tokens[static_cast<std::size_t>(s * window + at + i)]);
      const std::span<const float> logits = state.append(ids);
      at += count;
      REQUIRE(state.length() == at);
      for (std::int64_t s = 0; s < f.windows(); ++s) {
        const auto row = static_cast<std::size_t>(s * window + at - 1);
        // One row at a time: twice the bound of the fixtures' test on all of them.
        CHECK(relative_error(logits.subspan(static_cast<std::size_t>(s) * vocab, vocab),
                             std::span(f.logits).subspan(row * vocab, vocab)) < 2e-4);
      }
    }
    CHECK_THROWS_WITH(state.append(std::vector<std::int32_t>{1, 2}),
                      contains_text("41 tokens exceed the capacity of 40"));
  }
}

TEST_CASE("at temperature zero the likeliest tokens follow") {
  const fixture f("llama3");
  const language_model model = language_model::open(f.directory);
  const std::vector<std::int32_t> prompt(f.tokens.begin(), f.tokens.begin() + 5);
  const std::vector<std::int32_t> text =
      generate(model, prompt, {.tokens = 20, .sampling = {.temperature = 0.0}});
  REQUIRE(text.size() == 20);
  std::vector<std::int32_t> all = prompt;
  all.insert(all.end(), text.begin(), text.end());
  const std::vector<float> logits = run(model, all, static_cast<std::int64_t>(all.size()));
  for (std::size_t i = prompt.size(); i < all.size(); ++i) {
    const auto row = std::span(logits).subspan((i - 1) * static_cast<std::size_t>(f.config.vocab),
                                               static_cast<std::size_t>(f.config.vocab));
    const float peak = *std::max_element(row.begin(), row.end());
    // Equal but for rounding, which may decide between two tokens almost equally likely.
    CHECK(row[static_cast<std::size_t>(all[i])] >= peak - 1e-4f);
  }

  const std::vector<std::int32_t> stopped =
      generate(model, prompt, {.tokens = 20, .stop = {text[4]}, .sampling = {.temperature = 0.0}});
  CHECK(stopped.size() < text.size());
  CHECK(std::equal(stopped.begin(), stopped.end(), text.begin()));
  CHECK(text[stopped.size()] == text[4]);
  CHECK_THROWS_WITH(generate(model, {}, {}), contains_text("prompt is empty"));
}

TEST_CASE("samples depend on the seed and their number only") {
  for (const std::string name : {"opt", "mistral"}) {
    CAPTURE(name);
    const fixture f(name);
    const language_model model = language_model::open(f.directory);
    const sample_options options{.count = 5, .length = 30, .sampling = {.seed = 11}};
    const std::vector<std::int32_t> five = sample_texts(model, options);
    REQUIRE(five.size() == 150);
    CHECK(sample_texts(model, options) == five);
    for (const std::int32_t id : five)
      CHECK((id >= 0 && id < f.config.vocab));
    // No two samples alike.
    std::set<std::vector<std::int32_t>> distinct;
    for (std::size_t i = 0; i < 5; ++i)
      distinct.insert({five.begin() + static_cast<std::ptrdiff_t>(30 * i),
                       five.begin() + static_cast<std::ptrdiff_t>(30 * i + 30)});
    CHECK(distinct.size() == 5);

    sample_options other = options;
    other.count = 2;
    CHECK(sample_texts(model, other) == std::vector<std::int32_t>(five.begin(), five.begin() + 60));
    other.first = 3;
    CHECK(sample_texts(model, other) == std::vector<std::int32_t>(five.begin() + 90, five.end()));
    other = options;
    other.memory_limit = 1; // one at a time
    CHECK(sample_texts(model, other) == five);
    other = options;
    other.sampling.seed = 12;
    CHECK(sample_texts(model, other) != five);
  }
}

TEST_CASE("samples of the model are likelier to it than random tokens") {
  const fixture f("qwen2");
  const language_model model = language_model::open(f.directory);
  cpu_forward engine(model.config());
  const std::vector<std::int32_t> samples =
      sample_texts(model, {.count = 40, .length = 40, .sampling = {.seed = 1}});
  std::vector<std::int32_t> noise;
  for (const float value : random_values(1600, 3))
    noise.push_back(static_cast<std::int32_t>((value + 1.0f) * 39.9f));
  const window_options windows{.length = 40};
  CHECK(perplexity(model, engine, cut_windows(samples, windows)).mean_loss <
        perplexity(model, engine, cut_windows(noise, windows)).mean_loss - 1.0);
}

TEST_CASE("tokens are drawn with their probabilities") {
  const std::vector<float> logits = {0.0f, 1.0f, -1.0f, 2.0f};
  constexpr int draws = 20'000;
  for (const double temperature : {1.0, 0.5}) {
    draw_stream stream(5, 0);
    std::vector<int> counts(4);
    for (int i = 0; i < draws; ++i)
      ++counts[static_cast<std::size_t>(
          sample_token(logits, {.temperature = temperature}, stream))];
    double total = 0.0;
    for (const float value : logits)
      total += std::exp(static_cast<double>(value) / temperature);
    for (std::size_t i = 0; i < 4; ++i) {
      const double p = std::exp(static_cast<double>(logits[i]) / temperature) / total;
      // Five standard deviations of the binomial distribution.
      CHECK_THAT(counts[i], WithinAbs(p * draws, 5.0 * std::sqrt(p * (1.0 - p) * draws)));
    }
  }
}

TEST_CASE("sampling keeps to the likeliest tokens where asked") {
  const std::vector<float> logits = {0.5f, 1.0f, 0.9f, 1.0f, -2.0f};
  draw_stream stream(1, 2);
  std::set<std::int32_t> seen;
  for (int i = 0; i < 200; ++i)
    seen.insert(sample_token(logits, {.temperature = 2.0, .top_k = 3}, stream));
  CHECK(seen == std::set<std::int32_t>{1, 2, 3});
  CHECK(sample_token(logits, {.temperature = 0.0}, stream) == 1);
  CHECK(sample_token(logits, {.temperature = 1.0, .top_k = 1}, stream) == 1);
  // Cold enough that nothing else has a weight left.
  for (int i = 0; i < 20; ++i)
    CHECK(sample_token(logits, {.temperature = 1e-300, .top_k = 2}, stream) % 2 == 1);

  CHECK_THROWS_WITH(sample_token(logits, {.temperature = -1.0}, stream),
                    contains_text("temperature"));
  CHECK_THROWS_WITH(sample_token(logits, {.top_k = -1}, stream), contains_text("top_k -1"));
  std::vector<float> broken = logits;
  broken[2] = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_WITH(sample_token(broken, {}, stream), contains_text("logit 2 is not finite"));
}

TEST_CASE("draws are uniform and their streams unrelated") {
  draw_stream a(1, 0);
  draw_stream b(1, 1);
  double sum = 0.0;
  double product = 0.0;
  constexpr int count = 10'000;
  for (int i = 0; i < count; ++i) {
    const double x = a.next();
    const double y = b.next();
    REQUIRE((x >= 0.0 && x < 1.0));
    sum += x;
    product += (x - 0.5) * (y - 0.5);
  }
  // Five standard deviations: 1/√(12·count) of the mean, 1/(12√count) of the covariance.
  CHECK_THAT(sum / count, WithinAbs(0.5, 5.0 / std::sqrt(12.0 * count)));
  CHECK_THAT(product / count, WithinAbs(0.0, 5.0 / (12.0 * std::sqrt(count))));
}

TEST_CASE("draws are the same on every platform") {
  draw_stream stream(0, 0);
  CHECK(stream.next() == 0x1.7512b684ea56p-6);
  CHECK(stream.next() == 0x1.0215fa7101751p-1);
  CHECK(draw_stream(7, 3).next() == 0x1.9b2c376109c96p-1);
}
