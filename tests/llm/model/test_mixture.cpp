// SPDX-License-Identifier: Apache-2.0
#include "model/mixture.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <vector>

#include "fixture.hpp"
#include "io/checkpoint_writer.hpp"
#include "llm/io/temporary.hpp"
#include "model/backward.hpp"
#include "model/parallel.hpp"
#include "support/catch.hpp"

namespace ressvd_llm::mixture_test {
namespace {

using namespace ressvd_llm::testing;

const std::vector<std::string> mixtures = {"mixtral", "qwen3_moe"};

// The fixtures' second layers are mixtures.
constexpr std::int64_t layer = 1;

std::vector<float> embedded(const language_model& model, const fixture& f) {
  std::vector<float> hidden(f.tokens.size() * static_cast<std::size_t>(f.config.hidden_size));
  cpu_forward(f.config).embed(model.outer(), f.tokens, f.window(), hidden.data());
  return hidden;
}

model_config router_config(std::int64_t experts, std::int64_t per_token, bool normalised) {
  model_config config;
  config.experts = experts;
  config.experts_per_token = per_token;
  config.normalised_experts = normalised;
  return config;
}

} // namespace

TEST_CASE("a mixture of equal experts is the MLP that they are", "[mixture]") {
  const fixture f("mixtral"); // whose weights add up to one
  const language_model model = language_model::open(f.directory);
  const auto tokens = static_cast<std::int64_t>(f.tokens.size());
  layer_weights mixture = model.layer(layer);
  layer_weights plain = mixture;
  plain.router = {};
  for (const projection kind : {projection::gate, projection::up, projection::down}) {
    plain[kind] = mixture[{kind, 2}];
    for (std::int64_t e = 0; e < f.config.experts; ++e)
      mixture[{kind, e}] = plain[kind];
  }
  const std::vector<float> before = embedded(model, f);
  std::vector<float> expected = before;
  std::vector<float> hidden = before;
  cpu_forward(f.config).layer(plain, expected.data(), tokens, f.window(), nullptr);
  cpu_forward(f.config).layer(mixture, hidden.data(), tokens, f.window(), nullptr);
  CHECK(relative_error(hidden, expected) < rounding);
  // Nor does it matter to the loss where the router sends a token.
  expected = random_values(static_cast<std::int64_t>(before.size()), 4);
  hidden = expected;
  cpu_backward(f.config).layer(plain, before.data(), tokens, f.window(), expected.data());
  cpu_backward(f.config).layer(mixture, before.data(), tokens, f.window(), hidden.data());
  CHECK(relative_error(hidden, expected) < rounding);
}

TEST_CASE("every token reaches as many experts as the config says, once each", "[mixture]") {
  for (const std::string& name : mixtures) {
    CAPTURE(name);
    const fixture f(name);
    const language_model model = language_model::open(f.directory);
    const auto tokens = static_cast<std::int64_t>(f.tokens.size());
    const std::int64_t width = f.config.hidden_size;
    for (const std::int64_t chunk : {1000, 24}) {
      std::vector<float> hidden = embedded(model, f);
      std::map<std::int64_t, std::vector<std::int64_t>> seen; // tokens by expert
      std::map<std::int64_t, std::vector<float>> rows;        // by token
      const input_observer observer = [&](const input_observation& o) {
        if (o.input.expert == no_expert) return;
        REQUIRE(std::ssize(o.positions) == o.x.rows);
        if (o.input.group == input_group::mlp_output) {
          CHECK(o.x.cols == f.config.expert_intermediate_size);
          return;
        }
        CHECK(o.x.cols == width);
        auto& mine = seen[o.input.expert];
        mine.insert(mine.end(), o.positions.begin(), o.positions.end());
        for (std::int64_t row = 0; row < o.x.rows; ++row) {
          const std::vector<float> x(o.x.host() + row * width, o.x.host() + (row + 1) * width);
          const std::int64_t token = o.positions[static_cast<std::size_t>(row)];
          CHECK(rows.try_emplace(token, x).first->second == x);
        }
      };
      cpu_forward(f.config, {.private_tokens = chunk})
          .layer(model.layer(layer), hidden.data(), tokens, 8, &observer);
      std::vector<std::int64_t> visits(static_cast<std::size_t>(tokens));
      for (const auto& [expert, positions] : seen) {
        CHECK(std::ranges::adjacent_find(positions, std::greater_equal()) == positions.end());
        for (const std::int64_t token : positions)
          ++visits.at(static_cast<std::size_t>(token));
      }
      CHECK(std::ranges::all_of(
          visits, [&](std::int64_t count) { return count == f.config.experts_per_token; }));
      CHECK(std::ssize(seen) > f.config.experts_per_token);
    }
  }
}

TEST_CASE("a router picks the most probable experts and weighs them", "[mixture]") {
  const std::int64_t tokens = 300;
  const std::int64_t hidden = 6;
  const std::int64_t experts = 7;
  const std::int64_t per_token = 3;
  const std::vector<float> x = random_values(tokens * hidden, 1);
  const std::vector<float> r = random_values(experts * hidden, 2);
  for (const bool normalised : {false, true}) {
    routing routes;
    route(router_config(experts, per_token, normalised), {experts, hidden, r}, x.data(), tokens,
          routes);
    REQUIRE(routes.row_count() == tokens * per_token);
    for (std::int64_t t = 0; t < tokens; ++t) {
      std::vector<double> p;
      for (std::int64_t e = 0; e < experts; ++e) {
        double logit = 0;
        for (std::int64_t j = 0; j < hidden; ++j)
          logit += static_cast<double>(x[static_cast<std::size_t>(t * hidden + j)]) *
                   static_cast<double>(r[static_cast<std::size_t>(e * hidden + j)]);
        p.push_back(std::exp(logit));
      }
      std::vector<double> sorted = p;
      std::ranges::sort(sorted, std::greater());
      const double total = normalised ? std::accumulate(sorted.begin(), sorted.begin() + 3, 0.0)
                                      : std::accumulate(p.begin(), p.end(), 0.0);
      std::int64_t before = -1;
      for (std::int64_t j = 0; j < per_token; ++j) {
        const std::int64_t row = routes.rows[static_cast<std::size_t>(t * per_token + j)];
        CHECK(routes.token[static_cast<std::size_t>(row)] == t);
        std::int64_t expert = 0;
        while (row >= routes.first(expert + 1))
          ++expert;
        CHECK(expert > before);
        before = expert;
        const double probability = p[static_cast<std::size_t>(expert)];
        CHECK(probability >= sorted[2] * (1 - 1e-6));
        CHECK(std::abs(static_cast<double>(routes.weight[static_cast<std::size_t>(row)]) -
                       probability / total) < 1e-6);
      }
    }
  }
}

TEST_CASE("equally probable experts are taken in order, and numbers that are none harm nothing",
          "[mixture]") {
  const std::vector<float> x = {1.0f, 2.0f, std::numeric_limits<float>::quiet_NaN(), 1.0f};
  routing routes;
  route(router_config(4, 2, true), {4, 2, std::vector<float>(8)}, x.data(), 2, routes);
  CHECK(routes.count(0) + routes.count(1) + routes.count(2) + routes.count(3) == 4);
  CHECK(routes.token[0] == 0);
  CHECK(routes.rows[0] == routes.first(0));
  CHECK(routes.rows[1] == routes.first(1));
  CHECK(routes.weight[0] == 0.5f);
}

TEST_CASE("a router that is missing, misshapen or no number is refused by name", "[mixture]") {
  const fixture f("mixtral");
  const std::string router = "model.layers.1.block_sparse_moe.gate.weight";
  const llm_test::temporary_directory directory;
  const auto opened = [&](const char* name, const std::vector<std::int64_t>& shape, float value) {
    const checkpoint source = checkpoint::open(f.directory);
    checkpoint_writer writer(directory / name, f.directory);
    for (const std::string& tensor : source.names())
      if (tensor != router) writer.add(source.at(tensor));
    if (!shape.empty()) {
      // Written as bytes, since the writer refuses what is no number.
      std::int64_t count = 1;
      for (const std::int64_t extent : shape)
        count *= extent;
      const std::vector<float> values(static_cast<std::size_t>(count), value);
      writer.add(tensor_view{router, dtype::f32, shape,
                             reinterpret_cast<const std::byte*>(values.data())});
    }
    writer.copy_file(f.directory / "config.json");
    writer.commit();
    (void)language_model::open(directory / name).layer(1);
  };
  CHECK_NOTHROW(opened("right", {4, 32}, 0.5f));
  CHECK_THROWS_WITH(opened("missing", {}, 0), contains_text(router) && contains_text("missing"));
  CHECK_THROWS_WITH(opened("misshapen", {5, 32}, 0.5f),
                    contains_text(router) && contains_text("[4, 32] is expected"));
  CHECK_THROWS_WITH(opened("nan", {4, 32}, std::numeric_limits<float>::quiet_NaN()),
                    contains_text(router) && contains_text("not finite"));
}

TEST_CASE("a mixture's outputs do not depend on the number of threads", "[mixture]") {
  for (const std::string& name : mixtures) {
    CAPTURE(name);
    const fixture f(name);
    const language_model model = language_model::open(f.directory);
    const auto before = static_cast<int>(thread_count());
    std::vector<std::vector<float>> logits;
    for (const int threads : {1, 3}) {
      set_thread_count(threads);
      logits.push_back(run(model, f.tokens, f.window()));
    }
    set_thread_count(before);
    CHECK(relative_error(logits[1], logits[0]) < rounding);
  }
}

} // namespace ressvd_llm::mixture_test
