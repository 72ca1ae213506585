// SPDX-License-Identifier: Apache-2.0
#include "compress/layer_store.hpp"

#include <cstdint>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "llm/io/temporary.hpp"
#include "llm/model/fixture.hpp"
#include "support/catch.hpp"

namespace ressvd_llm {
namespace {

using state = ressvd::factored_state<float>;

std::vector<float> counted(std::int64_t count, float first) {
  std::vector<float> values(static_cast<std::size_t>(count));
  std::iota(values.begin(), values.end(), first);
  return values;
}

// A matrix of rank 3 whose basis acts on this side, with a residual stage where it can have one.
state made_up(const linear_module& m, ressvd::projection acts) {
  state s;
  s.rows = m.out;
  s.cols = m.in;
  s.rank = 3;
  s.acts = acts;
  s.q = counted(3 * (acts == ressvd::projection::right ? m.in : m.out), 0.5f);
  if (acts == ressvd::projection::both) {
    s.p = counted(3 * m.in, 100.25f);
    s.stages = {{4, 3, counted(m.out, 11), counted(m.in, -13), 0.25, std::nullopt}};
  }
  s.singular_values = {3, 2, 1.0 / 3};
  s.weight_losses = {10, 5, 2.5, 0.1};
  if (acts == ressvd::projection::left) {
    s.activation_losses = {1e-20, 1e-21, 0, 0};
    s.stages = {{5, 3, counted(2 * m.out, -7), {}, 0.75, 1e-3},
                {4, 3, counted(m.out, 9), {}, 0.5, std::nullopt}};
    s.whitening = ressvd::whitening_report{.path = ressvd::whitening_path::eigenvalues,
                                           .damping = 1e-9,
                                           .relative_damping = 1e-10,
                                           .condition = std::numeric_limits<double>::infinity()};
  }
  s.svd.numerical_rank = 2;
  s.seconds = 0.125;
  return s;
}

} // namespace

TEST_CASE("a stored layer comes back as it was", "[store]") {
  const testing::fixture f("llama");
  const llm_test::temporary_directory directory;
  const layer_store store(directory.path());
  factored_layer layer{.index = 1, .similarity = 0.375, .matrices = {}};
  for (const linear_module& m : linear_modules(f.config, 1)) {
    const auto side = static_cast<ressvd::projection>(layer.matrices.size() % 3);
    layer.matrices.push_back({m, made_up(m, side)});
  }
  layer.matrices.back().state = {}; // not factored
  CHECK_FALSE(store.contains(1));
  store.save(layer);
  REQUIRE(store.contains(1));
  CHECK_FALSE(store.contains(0));

  const factored_layer whole = store.load(f.config, 1);
  const factored_layer summary = store.load_summary(f.config, 1);
  REQUIRE(whole.matrices.size() == layer.matrices.size());
  CHECK(whole.similarity == layer.similarity);
  for (std::size_t i = 0; i < layer.matrices.size(); ++i) {
    INFO("matrix " << i);
    const state& expected = layer.matrices[i].state;
    CHECK(summary.matrices[i].state.q.empty());
    CHECK(whole.matrices[i].state.q == expected.q);
    CHECK(whole.matrices[i].state.p == expected.p);
    for (const state* s : {&whole.matrices[i].state, &summary.matrices[i].state}) {
      CHECK(s->rank == expected.rank);
      CHECK(s->acts == expected.acts);
      CHECK(s->singular_values == expected.singular_values);
      CHECK(s->weight_losses == expected.weight_losses);
      CHECK(s->activation_losses == expected.activation_losses);
      CHECK(s->svd.numerical_rank == expected.svd.numerical_rank);
      CHECK(s->seconds == expected.seconds);
      REQUIRE(s->whitening.has_value() == expected.whitening.has_value());
      if (s->whitening) {
        CHECK(s->whitening->path == expected.whitening->path);
        CHECK(s->whitening->damping == expected.whitening->damping);
        CHECK(s->whitening->condition == expected.whitening->condition);
      }
      REQUIRE(s->stages.size() == expected.stages.size());
      for (std::size_t k = 0; k < s->stages.size(); ++k) {
        CHECK(s->stages[k].rank == expected.stages[k].rank);
        CHECK(s->stages[k].intermediate_rank == expected.stages[k].intermediate_rank);
        CHECK(s->stages[k].weight_energy == expected.stages[k].weight_energy);
        CHECK(s->stages[k].activation_energy == expected.stages[k].activation_energy);
      }
    }
    for (std::size_t k = 0; k < expected.stages.size(); ++k) {
      CHECK(whole.matrices[i].state.stages[k].q == expected.stages[k].q);
      CHECK(whole.matrices[i].state.stages[k].p == expected.stages[k].p);
    }
  }
}

} // namespace ressvd_llm
