// SPDX-License-Identifier: Apache-2.0
//
// The forward pass on a card, against that on the CPU and the fixtures' logits.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "cuda_stand_in/stand_in.hpp"
#include "io/dtype.hpp"
#include "io/error.hpp"
#include "llm/model/fixture.hpp"
#include "model/device.hpp"
#include "model/evaluation.hpp"
#include "support/catch.hpp"

namespace {

using namespace ressvd_llm;
using testing::families;
using testing::fixture;
using testing::run;

std::unique_ptr<forward_engine> on_card(const model_config& config, dtype precision,
                                        const card_forward_options& options = {}) {
  return make_forward_engine(config, open_device({.precision = precision}), options);
}

// Families without mixtures of experts.
std::vector<std::string> families_on_card() {
  std::vector<std::string> names = families;
  std::erase_if(names, [](const std::string& name) { return fixture(name).config.experts > 0; });
  return names;
}

// Matrices as a model of this type has them.
weight_matrix rounded(const weight_matrix& m, dtype type) {
  if (m.empty()) return {};
  std::vector<float> values = m.values();
  std::vector<std::byte> stored(bytes_of(type, std::ssize(values)));
  encode(values, type, stored.data());
  decode(type, stored.data(), values);
  return {m.rows(), m.cols(), std::move(values)};
}

struct rounded_model {
  rounded_model(const language_model& model, dtype type) : outer(model.outer()) {
    for (std::int64_t i = 0; i < model.config().layers; ++i) {
      layers.push_back(model.layer(i));
      for (linear& l : layers.back().linears)
        l.dense = rounded(l.dense, type);
    }
    const bool tied = model.config().tied_embeddings;
    outer.embedding = rounded(outer.embedding, type);
    outer.positions = rounded(outer.positions, type);
    outer.head = tied ? outer.embedding : rounded(outer.head, type);
  }

  std::vector<float> logits(forward_engine& engine, const fixture& f) const {
    engine_matrix hidden = engine.embed(outer, f.tokens, f.window());
    for (const layer_weights& layer : layers)
      engine.layer(layer, hidden, f.window());
    engine_matrix result;
    engine.logits(outer, hidden, 0, hidden.rows(), result);
    return result.values();
  }

  outer_weights outer;
  std::vector<layer_weights> layers;
};

// Each matrix of a layer as two factors, or as its pivot rows and what follows from them.
layer_weights factored(layer_weights weights, bool pivoted) {
  unsigned seed = 0;
  for (linear& l : weights.linears) {
    if (l.empty()) continue;
    const std::int64_t out = l.out();
    const std::int64_t in = l.in();
    const std::int64_t r = std::min(out, in) / 2 + 1;
    const auto random = [&](std::int64_t rows, std::int64_t cols) {
      std::vector<float> values = testing::random_values(rows * cols, ++seed);
      for (float& value : values)
        value *= 0.1f;
      return weight_matrix(rows, cols, std::move(values));
    };
    l = pivoted ? make_pivoted_linear(random(out - r, r), random(r, in),
                                      testing::random_order(out, ++seed), l.bias)
                : make_linear(random(out, r), random(r, in), l.bias);
  }
  return weights;
}

language_model factored_model(const fixture& f, bool pivoted) {
  language_model model = language_model::open(f.directory);
  for (std::int64_t layer = 0; layer < f.config.layers; ++layer)
    model.replace_layer(layer, factored(model.layer(layer), pivoted));
  return model;
}

TEST_CASE("on a card every family computes the fixtures' logits", "[cuda][program]") {
  for (const std::string& name : families_on_card()) {
    CAPTURE(name);
    const fixture f(name);
    const auto engine = on_card(f.config, dtype::f32);
    // From where they are mapped, then from memory.
    for (const std::uint64_t in_memory : {std::uint64_t{0}, std::uint64_t{1} << 30}) {
      const auto model = language_model::open(f.directory, {.memory_limit = in_memory});
      CHECK(testing::relative_error(run(model, *engine, f.tokens, f.window()), f.logits) < 1e-4);
    }
  }
}

TEST_CASE("in 16 bits every family computes the same up to the rounding of activations",
          "[cuda][program]") {
  for (const std::string& name : families_on_card()) {
    CAPTURE(name);
    const fixture f(name);
    const language_model model = language_model::open(f.directory);
    const auto error = [&](dtype type) {
      const rounded_model values(model, type);
      cpu_forward exact(f.config);
      const auto engine = on_card(f.config, type);
      return testing::relative_error(values.logits(*engine, f), values.logits(exact, f));
    };
    // Twice what was measured, in half units of the last place: some roundings behind each other,
    // which sharp attention makes larger. In proportion to the unit, so nothing else is lost.
    const double in_half = error(dtype::f16);
    const double in_bfloat16 = error(dtype::bf16);
    CHECK(in_half < 6 * 0x1p-11);
    CHECK(in_bfloat16 < 6 * 0x1p-8);
    CHECK(in_bfloat16 / in_half > 4);
    CHECK(in_bfloat16 / in_half < 16);
  }
}

TEST_CASE("on a card groups, blocks of queries and streamed weights change no logits",
          "[cuda][program]") {
  for (const char* name : {"llama3", "gemma2", "mistral"}) {
    CAPTURE(name);
    const fixture f(name);
    const auto model = language_model::open(f.directory, {.memory_limit = 0});
    std::vector<std::int32_t> ids = f.tokens;
    ids.insert(ids.end(), f.tokens.rbegin(), f.tokens.rend());
    const std::int64_t window = 80;
    const std::vector<float> whole = run(model, ids, window);
    for (const card_forward_options& options :
         {card_forward_options{.group_tokens = 1, .score_elements = 1},
          card_forward_options{.weight_bytes = 0, .group_tokens = 2 * window},
          card_forward_options{.weight_bytes = 20'000, .score_elements = 3 * 64 * 80}}) {
      const auto engine = on_card(f.config, dtype::f32, options);
      for (int pass = 0; pass < 2; ++pass)
        CHECK(testing::relative_error(run(model, *engine, ids, window), whole) < 1e-5);
    }
  }
}

TEST_CASE("on a card factored and pivoted matrices compute what they do on the CPU",
          "[cuda][program]") {
  for (const char* name : {"llama3", "opt", "gemma2", "qwen2"}) {
    for (const bool pivoted : {false, true}) {
      CAPTURE(name, pivoted);
      const fixture f(name);
      const language_model model = factored_model(f, pivoted);
      const std::vector<float> expected = run(model, f.tokens, f.window());
      const auto engine = on_card(f.config, dtype::f32);
      CHECK(testing::relative_error(run(model, *engine, f.tokens, f.window()), expected) < 1e-4);
    }
  }
}

TEST_CASE("on a card an observer sees what it sees on the CPU", "[cuda][program]") {
  for (const char* name : {"llama", "opt", "gemma3"}) {
    CAPTURE(name);
    const fixture f(name);
    const language_model model = language_model::open(f.directory);
    const auto seen_by = [&](forward_engine& engine) {
      std::array<std::vector<float>, input_group_count> inputs;
      const input_observer observer = [&](const input_observation& seen) {
        const std::vector<float> values = engine.download(seen.x);
        CHECK(seen.x.rows % f.window() == 0);
        auto& to = inputs[seen.input.index()];
        to.insert(to.end(), values.begin(), values.end());
      };
      engine_matrix hidden = engine.embed(model.outer(), f.tokens, f.window());
      for (std::int64_t layer = 0; layer < f.config.layers; ++layer)
        engine.layer(model.layer(layer), hidden, f.window(), &observer);
      return inputs;
    };
    cpu_forward exact(f.config);
    const auto expected = seen_by(exact);
    const auto engine = on_card(f.config, dtype::f32);
    const auto seen = seen_by(*engine);
    // One window at a time the groups come in turns.
    const auto singly = seen_by(*on_card(f.config, dtype::f32, {.group_tokens = 1}));
    for (std::size_t i = 0; i < input_group_count; ++i) {
      CHECK(testing::relative_error(seen[i], expected[i]) < 1e-4);
      CHECK(singly[i].size() == seen[i].size());
    }
  }
}

TEST_CASE("on a card losses, divergences and differences are those of the CPU", "[cuda][program]") {
  const fixture f("mistral");
  const language_model model = language_model::open(f.directory);
  language_model other = model;
  other.replace_layer(1, factored(model.layer(1), false));
  const token_windows windows = cut_windows(f.tokens, {.length = 20});
  const auto figures = [&](forward_engine& engine) {
    std::vector<double> result = {perplexity(model, engine, windows).mean_loss};
    const engine_matrix a = final_hidden(model, engine, windows);
    const engine_matrix b = final_hidden(other, engine, windows);
    relative_error_sum error;
    error.add(a, b);
    result.push_back(error.value());
    error.add(a, a);
    result.push_back(error.value());
    engine_matrix p, q;
    engine.logits(model.outer(), a, 3, 5, p);
    engine.logits(model.outer(), b, 3, 5, q);
    for (const double divergence : kl_divergences(p, q))
      result.push_back(divergence);
    CHECK(kl_divergences(p, p) == std::vector<double>(5));
    return result;
  };
  cpu_forward exact(f.config);
  const std::vector<double> expected = figures(exact);
  const std::vector<double> found = figures(*on_card(f.config, dtype::f32));
  REQUIRE(found.size() == expected.size());
  for (std::size_t i = 0; i < found.size(); ++i)
    CHECK(found[i] == Approx(expected[i]).epsilon(1e-4));
}

TEST_CASE("matrices of a card are values: copies, parts, and back from the host",
          "[cuda][program]") {
  const fixture f("llama");
  const language_model model = language_model::open(f.directory);
  const auto engine = on_card(f.config, dtype::f32);
  engine_matrix hidden = engine->embed(model.outer(), f.tokens, f.window());
  const std::vector<float> before = hidden.values();
  const engine_matrix copy = hidden;
  engine->layer(model.layer(0), hidden, f.window());
  CHECK(copy.values() == before);
  CHECK(hidden.values() != before);
  const std::int64_t width = f.config.hidden_size;
  CHECK(copy.part(3, 2).values() ==
        std::vector<float>(before.begin() + 3 * width, before.begin() + 5 * width));
  CHECK(engine->upload(before).values() == before);
  CHECK_THROWS_AS(hidden.data(), std::logic_error);
  CHECK_THROWS_AS(compare(hidden, cpu_forward(f.config).upload(before)), std::logic_error);
  CHECK_THROWS_AS(copy.part(f.window(), 2 * f.window()), std::invalid_argument);
}

TEST_CASE("what is not finite on a card is named by layer and matrix", "[cuda][program]") {
  const fixture f("llama");
  const token_windows windows = cut_windows(f.tokens, {.length = 20});
  const auto message_of = [&](const language_model& model, dtype precision) -> std::string {
    const auto engine = on_card(f.config, precision);
    std::string message;
    try {
      perplexity(model, *engine, windows);
    } catch (const std::runtime_error& error) {
      message = error.what();
    }
    // Said once: the engine goes on.
    CHECK(
        std::isfinite(perplexity(language_model::open(f.directory), *engine, windows).perplexity));
    return message;
  };
  constexpr std::array<std::pair<projection, const char*>, projection_count> expected = {{
      {projection::q, "layer 1, output of q: not finite"},
      {projection::k, "layer 1, output of k: not finite"},
      {projection::v, "layer 1, output of v: not finite"},
      {projection::o, "layer 1, output of o: not finite"},
      {projection::gate, "layer 1, output of gate: not finite"},
      {projection::up, "layer 1, output of up: not finite"},
      {projection::down, "layer 1, output of down: not finite"},
  }};
  for (const auto& [kind, message] : expected) {
    language_model model = language_model::open(f.directory);
    layer_weights broken = model.layer(1);
    std::vector<float> values = broken[kind].dense.values();
    values[5] = std::numeric_limits<float>::infinity();
    broken[kind].dense = {broken[kind].out(), broken[kind].in(), values};
    model.replace_layer(1, broken);
    CHECK_THAT(message_of(model, dtype::f32), contains_text(message));
    // A value beyond float16.
    values[5] = 1e6f;
    broken[kind].dense = {broken[kind].out(), broken[kind].in(), values};
    model.replace_layer(1, broken);
    CHECK(message_of(model, dtype::f32).empty());
    CHECK_THAT(message_of(model, dtype::f16), contains_text(message));
  }
  // In the last layer's residual stream nothing follows but the final norm.
  language_model model = language_model::open(f.directory);
  layer_weights broken = model.layer(0);
  broken.mlp_norm.scale[3] = std::numeric_limits<float>::quiet_NaN();
  model.replace_layer(0, broken);
  CHECK_THAT(message_of(model, dtype::f32), contains_text("layer 0, output of gate"));
}

TEST_CASE("a card's engine refuses what the CPU's refuses", "[cuda][program]") {
  const fixture f("opt");
  const language_model model = language_model::open(f.directory);
  const auto engine = on_card(f.config, dtype::f32);
  CHECK_THROWS_WITH(engine->embed(model.outer(), f.tokens, 7),
                    contains_text("80 tokens are not whole windows of 7"));
  const std::vector<std::int32_t> bad = {3, 80};
  CHECK_THROWS_WITH(engine->embed(model.outer(), bad, 2),
                    contains_text("token id 80 outside the vocabulary of 80"));
  CHECK_THROWS_WITH(engine->embed(model.outer(), f.tokens, 80),
                    contains_text("learned 64 positions"));
}

TEST_CASE("a mixture of experts is refused by name, and left to the CPU", "[cuda][program]") {
  for (const char* name : {"mixtral", "qwen3_moe"}) {
    CAPTURE(name);
    const fixture f(name);
    const std::string message =
        f.config.file.string() + ": --backend cuda has no mixtures of experts";
    const auto refuses = [&](const auto& call) {
      CHECK_THROWS_AS(call(), usage_error);
      CHECK_THROWS_WITH(call(), contains_text(message));
    };
    refuses([&] { (void)on_card(f.config, dtype::f32); });
    refuses([&] { (void)choose_device(backend_choice::cuda, {}, f.config); });
    CHECK(choose_device(backend_choice::automatic, {}, f.config) == nullptr);
    CHECK(choose_device(backend_choice::cpu, {}, f.config) == nullptr);
  }
}

TEST_CASE("within a layer nothing waits for the card", "[cuda][program]") {
  const fixture f("llama");
  const auto model = language_model::open(f.directory, {.memory_limit = 0});
  const auto engine = on_card(f.config, dtype::bf16);
  engine_matrix hidden = engine->embed(model.outer(), f.tokens, f.window());
  engine->layer(model.layer(0), hidden, f.window());
  const long before = stand_in::control.waits;
  engine->layer(model.layer(0), hidden, f.window());
  CHECK(stand_in::control.waits == before);
}

TEST_CASE("a model larger than the card's share runs, and leaves no memory behind",
          "[cuda][program]") {
  const fixture f("llama");
  const auto model = language_model::open(f.directory, {.memory_limit = 0});
  const std::size_t before = stand_in::bytes_in_use();
  {
    // Enough for the states, the buffers and less than the model.
    const auto card = open_device({.memory_limit = 250'000, .precision = dtype::f32});
    const auto engine = make_forward_engine(f.config, card);
    for (int pass = 0; pass < 2; ++pass)
      CHECK(testing::relative_error(run(model, *engine, f.tokens, f.window()), f.logits) < 1e-4);
    CHECK(peak_memory_of(*card) <= 250'000);
  }
  CHECK(stand_in::bytes_in_use() == before);
  const auto card = open_device({.memory_limit = 20'000, .precision = dtype::f32});
  const auto engine = make_forward_engine(f.config, card);
  CHECK_THROWS_WITH(run(model, *engine, f.tokens, f.window()),
                    contains_text("bytes of device memory"));
}

} // namespace
