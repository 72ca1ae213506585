// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <functional>
#include <limits>

#include "fixture.hpp"
#include "support/catch.hpp"

using namespace ressvd_llm;
using namespace ressvd_llm::testing;

namespace {

// What transformers computed and we compute may differ by the order of float32 sums.
constexpr double agreement = 1e-4;

struct observation {
  layer_input input;
  std::int64_t tokens;
  std::int64_t features;
  std::vector<float> x;
};

std::vector<float> output_of(const linear& layer, const std::vector<float>& x) {
  const std::int64_t tokens = static_cast<std::int64_t>(x.size()) / layer.in();
  std::vector<float> y(static_cast<std::size_t>(tokens * layer.out()));
  layer.apply(x.data(), tokens, y.data());
  return y;
}

std::vector<float> add(std::vector<float> a, const std::vector<float>& b) {
  for (std::size_t i = 0; i < a.size(); ++i)
    a[i] += b[i];
  return a;
}

// The norms as in their definition, in float64.
std::vector<float> norm(const norm_weights& weights, double eps, const std::vector<float>& x) {
  const std::size_t width = weights.scale.size();
  std::vector<float> y(x.size());
  for (std::size_t row = 0; row < x.size(); row += width) {
    double mean = 0.0;
    if (!weights.shift.empty())
      for (std::size_t i = 0; i < width; ++i)
        mean += static_cast<double>(x[row + i]) / static_cast<double>(width);
    double square = eps;
    for (std::size_t i = 0; i < width; ++i)
      square += std::pow(static_cast<double>(x[row + i]) - mean, 2) / static_cast<double>(width);
    for (std::size_t i = 0; i < width; ++i)
      y[row + i] =
          static_cast<float>((static_cast<double>(x[row + i]) - mean) / std::sqrt(square) *
                                 static_cast<double>(weights.scale[i]) +
                             (weights.shift.empty() ? 0.0 : static_cast<double>(weights.shift[i])));
  }
  return y;
}

} // namespace

TEST_CASE("logits agree with transformers in every family") {
  for (const std::string& name : families) {
    CAPTURE(name);
    const fixture f(name);
    const language_model model = language_model::open(f.directory);
    REQUIRE(model.storage() == weight_storage::float32);
    const std::vector<float> logits = run(model, f.tokens, f.window());
    CHECK(relative_error(logits, f.logits) < agreement);
  }
}

TEST_CASE("weights left in the file give the same logits as weights in memory") {
  for (const std::string& name : families) {
    CAPTURE(name);
    const fixture f(name);
    const language_model model = language_model::open(f.directory, {.memory_limit = 0});
    REQUIRE(model.storage() == weight_storage::mapped);
    CHECK(relative_error(run(model, f.tokens, f.window()), f.logits) < agreement);
  }
}

TEST_CASE("the fixtures notice every feature of the config") {
  const auto error_with = [](const std::string& name,
                             const std::function<void(model_config&)>& change) {
    const fixture f(name);
    model_config config = f.config;
    change(config);
    const language_model model(checkpoint::open(f.directory), config);
    return relative_error(run(model, f.tokens, f.window()), f.logits);
  };
  CHECK(error_with("mistral", [](auto& c) { c.sliding_window.reset(); }) > 0.01);
  CHECK(error_with("mistral", [](auto& c) { c.sliding_window = 10; }) > 0.01);
  CHECK(error_with("llama3", [](auto& c) { c.rope.scaling = rope_scaling::none; }) > 0.01);
  CHECK(error_with("llama3", [](auto& c) { c.rope.scaling = rope_scaling::linear; }) > 0.01);
  CHECK(error_with("llama_linear", [](auto& c) { c.rope.scaling = rope_scaling::none; }) > 0.01);
  CHECK(error_with("qwen2", [](auto& c) { c.rope.theta = 10000.0; }) > 0.01);
  CHECK(error_with("qwen3", [](auto& c) { c.qk_norm = false; }) > 0.01);
  CHECK(error_with("mixtral", [](auto& c) { c.normalised_experts = false; }) > 0.01);
  CHECK(error_with("mixtral", [](auto& c) { c.experts_per_token = 1; }) > 0.01);
  CHECK(error_with("qwen3_moe", [](auto& c) { c.normalised_experts = true; }) > 0.01);
  CHECK(error_with("qwen3_moe", [](auto& c) { c.experts_per_token = 3; }) > 0.01);
  CHECK(error_with("opt", [](auto& c) { c.activation = activation_kind::gelu; }) > 0.01);
}

TEST_CASE("a token changes no logits before it") {
  for (const std::string& name : families) {
    CAPTURE(name);
    const fixture f(name);
    const language_model model = language_model::open(f.directory);
    std::vector<std::int32_t> ids(f.tokens.begin(), f.tokens.begin() + f.window());
    const std::vector<float> before = run(model, ids, f.window());
    const std::int64_t changed = 25;
    ids[changed] = (ids[changed] + 1) % static_cast<std::int32_t>(f.config.vocab);
    const std::vector<float> after = run(model, ids, f.window());
    const auto split = static_cast<std::size_t>(changed * f.config.vocab);
    if (f.config.experts > 0) {
      // The token's experts change, and with them where rows lie in the products of others.
      CHECK(relative_error(std::span(after).first(split), std::span(before).first(split)) <
            rounding);
    } else {
      CHECK(std::equal(before.begin(), before.begin() + static_cast<std::ptrdiff_t>(split),
                       after.begin()));
    }
    CHECK(relative_error(std::span(after).subspan(split), std::span(before).subspan(split)) > 0.01);
  }
}

TEST_CASE("equal work gives equal bits, wherever the hidden states lie") {
  for (const std::string& name : families) {
    CAPTURE(name);
    const fixture f(name);
    const language_model model = language_model::open(f.directory);
    const auto tokens = static_cast<std::int64_t>(f.tokens.size());
    const auto size = static_cast<std::size_t>(tokens * f.config.hidden_size);
    std::vector<std::vector<float>> results;
    for (const std::size_t shift : {std::size_t{0}, std::size_t{1}, std::size_t{5}}) {
      cpu_forward engine(model.config());
      std::vector<float> memory(size + shift);
      float* hidden = memory.data() + shift;
      engine.embed(model.outer(), f.tokens, f.window(), hidden);
      for (std::int64_t layer = 0; layer < f.config.layers; ++layer)
        engine.layer(model.layer(layer), hidden, tokens, f.window(), nullptr);
      results.emplace_back(hidden, hidden + size);
    }
    CHECK(results[1] == results[0]);
    CHECK(results[2] == results[0]);
  }
}

TEST_CASE("windows in a batch are computed as each by itself") {
  for (const std::string& name : families) {
    CAPTURE(name);
    const fixture f(name);
    const language_model model = language_model::open(f.directory);
    // 16 windows of 10 tokens, in one group, in groups of 3 windows, and one by one.
    std::vector<std::int32_t> ids = f.tokens;
    ids.insert(ids.end(), f.tokens.rbegin(), f.tokens.rend());
    const std::int64_t window = 10;
    const std::vector<float> together = run(model, ids, window);
    cpu_forward narrow(model.config(), {.private_tokens = 39});
    CHECK(relative_error(run(model, narrow, ids, window), together) < rounding);
    std::vector<float> singly;
    for (std::size_t start = 0; start < ids.size(); start += static_cast<std::size_t>(window)) {
      const auto first = ids.begin() + static_cast<std::ptrdiff_t>(start);
      const std::vector<float> logits = run(model, {first, first + window}, window);
      singly.insert(singly.end(), logits.begin(), logits.end());
    }
    CHECK(relative_error(singly, together) < rounding);
  }
}

TEST_CASE("an observer sees the inputs that the linear layers use") {
  for (const std::string& name : families) {
    CAPTURE(name);
    const fixture f(name);
    if (f.config.is_mixture(0)) continue; // in a test of its own
    const language_model model = language_model::open(f.directory);
    cpu_forward engine(model.config());
    const auto tokens = static_cast<std::int64_t>(f.tokens.size());
    std::vector<float> hidden(static_cast<std::size_t>(tokens * f.config.hidden_size));
    engine.embed(model.outer(), f.tokens, f.window(), hidden.data());
    const std::vector<float> before = hidden;
    const layer_weights& layer = model.layer(0);

    std::vector<observation> seen;
    const input_observer observer = [&](const input_observation& o) {
      seen.push_back({o.input, o.x.rows, o.x.cols, engine.download(o.x)});
    };
    engine.layer(layer, hidden.data(), tokens, f.window(), &observer);

    const std::array groups = {input_group::attention, input_group::attention_output,
                               input_group::mlp, input_group::mlp_output};
    REQUIRE(seen.size() == groups.size());
    for (std::size_t i = 0; i < groups.size(); ++i) {
      CHECK(seen[i].input == layer_input(groups[i]));
      CHECK(seen[i].tokens == tokens);
    }
    for (const linear_module& module : linear_modules(f.config, 0)) {
      CHECK(seen[module.input.index()].features == module.in);
      CHECK(layer[module.place].in() == module.in);
      CHECK(layer[module.place].out() == module.out);
    }
    CHECK(relative_error(seen[0].x, norm(layer.attention_norm, f.config.norm_eps, before)) <
          rounding);
    const auto output = [&](projection kind, const norm_weights& post_norm) {
      const auto& x = seen[kind == projection::o ? 1 : 3].x;
      std::vector<float> y = output_of(layer[kind], x);
      return post_norm.scale.empty() ? y : norm(post_norm, f.config.norm_eps, y);
    };
    const std::vector<float> middle = add(before, output(projection::o, layer.attention_post_norm));
    CHECK(relative_error(seen[2].x, norm(layer.mlp_norm, f.config.norm_eps, middle)) < rounding);
    std::vector<float> inner = output_of(layer[projection::up], seen[2].x);
    if (f.config.family == model_family::opt) {
      for (float& value : inner)
        value = std::max(value, 0.0f);
    } else {
      const std::vector<float> gate = output_of(layer[projection::gate], seen[2].x);
      for (std::size_t i = 0; i < inner.size(); ++i)
        inner[i] *= f.config.activation == activation_kind::silu
                        ? gate[i] / (1.0f + std::exp(-gate[i]))
                        : 0.5f * gate[i] *
                              (1.0f + std::tanh(0.79788456f * (gate[i] + 0.044715f * gate[i] *
                                                                             gate[i] * gate[i])));
    }
    CHECK(relative_error(seen[3].x, inner) < rounding);
    CHECK(relative_error(hidden, add(middle, output(projection::down, layer.mlp_post_norm))) <
          rounding);
  }
}

TEST_CASE("observed windows come in order, whole, and once") {
  const fixture f("mistral");
  const language_model model = language_model::open(f.directory);
  const std::int64_t window = 8;
  const auto tokens = static_cast<std::int64_t>(f.tokens.size());
  const auto inputs = [&](std::int64_t chunk) {
    cpu_forward engine(model.config(), {.private_tokens = chunk});
    std::vector<float> hidden(static_cast<std::size_t>(tokens * f.config.hidden_size));
    engine.embed(model.outer(), f.tokens, window, hidden.data());
    std::array<std::vector<float>, input_group_count> all;
    const input_observer observer = [&](const input_observation& seen) {
      CHECK(seen.x.rows % window == 0);
      std::vector<float>& to = all[seen.input.index()];
      to.insert(to.end(), seen.x.host(), seen.x.host() + seen.x.rows * seen.x.cols);
    };
    engine.layer(model.layer(0), hidden.data(), tokens, window, &observer);
    return all;
  };
  const auto whole = inputs(1000);
  const auto pieces = inputs(24);
  for (std::size_t i = 0; i < input_group_count; ++i)
    CHECK(relative_error(pieces[i], whole[i]) < rounding);
}

TEST_CASE("a layer that produces no number makes evaluation fail") {
  const fixture f("llama");
  language_model model = language_model::open(f.directory);
  layer_weights broken = model.layer(1);
  broken.mlp_norm.scale[3] = std::numeric_limits<float>::quiet_NaN();
  model.replace_layer(1, broken);
  cpu_forward engine(model.config());
  CHECK_THROWS_WITH(perplexity(model, engine, cut_windows(f.tokens, {.length = 20})),
                    contains_text("not finite"));
}

TEST_CASE("the forward pass refuses what it cannot compute") {
  const fixture f("opt");
  const language_model model = language_model::open(f.directory);
  cpu_forward engine(model.config());
  std::vector<float> hidden(static_cast<std::size_t>(80 * f.config.hidden_size));
  CHECK_THROWS_WITH(engine.embed(model.outer(), f.tokens, 7, hidden.data()),
                    contains_text("80 tokens are not whole windows of 7"));
  const std::vector<std::int32_t> bad = {3, 80};
  CHECK_THROWS_WITH(engine.embed(model.outer(), bad, 2, hidden.data()),
                    contains_text("token id 80 outside the vocabulary of 80"));
  CHECK_THROWS_WITH(engine.embed(model.outer(), f.tokens, 80, hidden.data()),
                    contains_text("learned 64 positions"));
  CHECK_THROWS_WITH(model.layer(2), contains_text("layer 2 of 2"));
}
