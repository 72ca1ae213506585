// SPDX-License-Identifier: Apache-2.0
#include "model/backward.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <span>
#include <utility>

#include <nlohmann/json.hpp>

#include "fixture.hpp"
#include "model/evaluation.hpp"
#include "model/parallel.hpp"
#include "support/catch.hpp"

namespace ressvd_llm::backward_test {

using namespace ressvd_llm::testing;

namespace {

// Central differences with steps h and h/2 along a unit vector, extrapolated. What is left of the
// truncation is of order h⁴ and below this part of the gradient's norm, and the losses, about 400
// nats in sum, are rounded by some 2e-5, which the division by h makes 1e-3.
constexpr double difference_step = 0.02;
constexpr double difference_agreement = 1e-3;
constexpr double difference_rounding = 3e-3;

double dot(std::span<const float> a, std::span<const float> b) {
  REQUIRE(a.size() == b.size());
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum;
}

double norm(std::span<const float> a) {
  return std::sqrt(dot(a, a));
}

std::vector<float> plus(std::vector<float> a, double step, std::span<const float> b) {
  for (std::size_t i = 0; i < a.size(); ++i)
    a[i] += static_cast<float>(step * static_cast<double>(b[i]));
  return a;
}

std::vector<float> unit(std::vector<float> a) {
  const double length = norm(a);
  for (float& value : a)
    value = static_cast<float>(static_cast<double>(value) / length);
  return a;
}

// A direction in which a loss with this gradient changes markedly, and that is not the gradient's.
std::vector<float> direction(const std::vector<float>& gradient, unsigned seed) {
  return unit(plus(unit(gradient), 1.0,
                   unit(random_values(static_cast<std::int64_t>(gradient.size()), seed))));
}

// All that a backward pass over a model gives.
struct pass {
  loss_result loss;
  std::vector<std::vector<float>> inputs;    // hidden states before each layer, then the last
  std::vector<std::vector<float>> gradients; // at them
  std::vector<std::map<std::size_t, std::vector<float>>> x; // by matrix_place::index
  std::vector<std::map<std::size_t, std::vector<float>>> g;
  std::vector<layer_gradients> parameters;
};

gradient_choice everything(const layer_weights& weights) {
  return {
      .matrices = std::vector<bool>(weights.linears.size(), true), .biases = true, .norms = true};
}

pass run_pass(const language_model& model, const std::vector<std::int32_t>& texts,
              std::int64_t window, const label_options& labels = {},
              const forward_options& options = {}) {
  const model_config& config = model.config();
  cpu_forward forward(config, options);
  cpu_backward backward(config, options);
  const auto tokens = static_cast<std::int64_t>(texts.size());
  const auto layers = static_cast<std::size_t>(config.layers);
  pass result;
  std::vector<float> hidden(static_cast<std::size_t>(tokens * config.hidden_size));
  forward.embed(model.outer(), texts, window, hidden.data());
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    result.inputs.push_back(hidden);
    forward.layer(model.layer(layer), hidden.data(), tokens, window, nullptr);
  }
  result.inputs.push_back(hidden);
  result.loss = backward.loss(model.outer(), texts, window, labels, hidden.data());
  result.gradients.resize(layers + 1);
  result.gradients[layers] = hidden;
  result.x.resize(layers);
  result.g.resize(layers);
  for (std::size_t layer = layers; layer-- > 0;) {
    const layer_weights& weights = model.layer(static_cast<std::int64_t>(layer));
    const gradient_observer observer = [&](const linear_observation& seen) {
      CHECK(seen.in == weights[seen.place].in());
      CHECK(seen.out == weights[seen.place].out());
      CHECK((seen.place.expert != no_expert || seen.tokens % window == 0));
      auto& x = result.x[layer][seen.place.index()];
      auto& g = result.g[layer][seen.place.index()];
      x.insert(x.end(), seen.x, seen.x + seen.tokens * seen.in);
      g.insert(g.end(), seen.g, seen.g + seen.tokens * seen.out);
    };
    layer_gradients sums = zero_gradients(weights, everything(weights));
    backward.layer(weights, result.inputs[layer].data(), tokens, window, hidden.data(),
                   {.observer = &observer, .parameters = &sums});
    result.gradients[layer] = hidden;
    result.parameters.insert(result.parameters.begin(), std::move(sums));
  }
  return result;
}

// The loss from the hidden states before a layer on.
double loss_from(const language_model& model, const std::vector<std::int32_t>& texts,
                 std::int64_t window, std::int64_t layer, std::vector<float> hidden) {
  cpu_forward forward(model.config());
  const auto tokens = static_cast<std::int64_t>(texts.size());
  for (; layer < model.config().layers; ++layer)
    forward.layer(model.layer(layer), hidden.data(), tokens, window, nullptr);
  return cpu_backward(model.config()).loss(model.outer(), texts, window, {}, hidden.data()).sum;
}

// The derivative of f at 0.
template <class F>
double slope(const F& f) {
  const auto difference = [&](double h) { return (f(h) - f(-h)) / (2 * h); };
  const double h = difference_step;
  return (4 * difference(h / 2) - difference(h)) / 3;
}

// The derivative of f along some directions against the gradient.
template <class F>
void check_gradient(const std::vector<float>& gradient, const F& f) {
  for (const unsigned seed : {1U, 2U}) {
    const std::vector<float> d = direction(gradient, seed);
    const double expected = dot(gradient, d);
    const double measured = slope([&](double step) { return f(step, d); });
    CAPTURE(expected, measured);
    CHECK(std::abs(measured - expected) <=
          difference_agreement * norm(gradient) + difference_rounding);
  }
}

// The same model with another activation: fixtures have SiLU and ReLU.
language_model with_activation(const fixture& f, activation_kind kind) {
  model_config config = f.config;
  config.activation = kind;
  return {checkpoint::open(f.directory), config};
}

// ReLU has kinks within any step that rounding leaves.
language_model smooth_model(const fixture& f) {
  return with_activation(f, f.config.activation == activation_kind::relu ? activation_kind::gelu
                                                                         : f.config.activation);
}

std::vector<float> transposed(const std::vector<float>& a, std::int64_t rows, std::int64_t cols) {
  std::vector<float> result(a.size());
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t j = 0; j < cols; ++j)
      result[static_cast<std::size_t>(j * rows + i)] = a[static_cast<std::size_t>(i * cols + j)];
  return result;
}

// A·B for A (rows × inner), B (inner × cols).
std::vector<float> product(const std::vector<float>& a, const std::vector<float>& b,
                           std::int64_t inner) {
  const std::int64_t rows = static_cast<std::int64_t>(a.size()) / inner;
  const std::int64_t cols = static_cast<std::int64_t>(b.size()) / inner;
  std::vector<float> result;
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t j = 0; j < cols; ++j) {
      double sum = 0;
      for (std::int64_t k = 0; k < inner; ++k)
        sum += static_cast<double>(a[static_cast<std::size_t>(i * inner + k)]) *
               static_cast<double>(b[static_cast<std::size_t>(k * cols + j)]);
      result.push_back(static_cast<float>(sum));
    }
  return result;
}

// Rows of a matrix in this order.
std::vector<float> rows_of(const std::vector<float>& a, std::span<const std::int32_t> order,
                           std::int64_t cols) {
  std::vector<float> result;
  for (const std::int32_t row : order) {
    const auto first = a.begin() + row * cols;
    result.insert(result.end(), first, first + cols);
  }
  return result;
}

// Models whose matrices are pairs, or pivoted, and one that has their products.
struct low_rank_models {
  language_model factored;
  language_model dense;
};

low_rank_models make_low_rank(const fixture& f, bool pivoted) {
  low_rank_models result{language_model::open(f.directory), language_model::open(f.directory)};
  for (std::int64_t layer = 0; layer < f.config.layers; ++layer) {
    layer_weights factored = result.dense.layer(layer);
    layer_weights dense = factored;
    for (const matrix_place& kind : places_of(factored)) {
      const linear& original = result.dense.layer(layer)[kind];
      const std::int64_t out = original.out();
      const std::int64_t in = original.in();
      const std::int64_t rank = std::min(out, in) / 2;
      const auto seed = static_cast<unsigned>(layer * 100) + static_cast<unsigned>(kind.index());
      const auto matrix = [&](std::int64_t rows, std::int64_t cols, unsigned number) {
        // As large as in the fixtures, and for C of order 1 in sum.
        std::vector<float> values = random_values(rows * cols, seed + number);
        for (float& value : values)
          value *= std::sqrt(4.0f / static_cast<float>(cols));
        return values;
      };
      const std::vector<float> right = matrix(rank, in, 1);
      if (pivoted) {
        const std::vector<float> c = matrix(out - rank, rank, 2);
        const std::vector<std::int32_t> order = random_order(out, seed);
        std::vector<float> rows = right;
        const std::vector<float> others = product(c, right, rank);
        rows.insert(rows.end(), others.begin(), others.end());
        std::vector<float> w(rows.size());
        for (std::size_t i = 0; i < order.size(); ++i)
          std::copy_n(rows.begin() + static_cast<std::int64_t>(i) * in, in,
                      w.begin() + order[i] * in);
        factored[kind] =
            make_pivoted_linear({out - rank, rank, c}, {rank, in, right}, order, original.bias);
        dense[kind] = make_linear({out, in, w}, original.bias);
      } else {
        const std::vector<float> u = matrix(out, rank, 2);
        factored[kind] = make_linear({out, rank, u}, {rank, in, right}, original.bias);
        dense[kind] = make_linear({out, in, product(u, right, rank)}, original.bias);
      }
    }
    result.factored.replace_layer(layer, factored);
    result.dense.replace_layer(layer, dense);
  }
  return result;
}

std::vector<float> without_observed_order(const pass& p) {
  std::vector<float> all;
  const auto append = [&](const std::vector<float>& values) {
    all.insert(all.end(), values.begin(), values.end());
  };
  for (const auto& layer : p.gradients)
    append(layer);
  for (const auto* observed : {&p.x, &p.g})
    for (const auto& layer : *observed)
      for (const auto& [kind, values] : layer)
        append(values);
  return all;
}

std::vector<float> all_parameters(const layer_gradients& sums) {
  std::vector<float> all;
  for (const linear_gradients& l : sums.linears)
    for (const auto* part : {&l.dense, &l.u, &l.v, &l.c, &l.z, &l.bias})
      all.insert(all.end(), part->begin(), part->end());
  for (const auto* n : {&sums.attention_norm, &sums.mlp_norm, &sums.q_norm, &sums.k_norm})
    for (const auto* part : {&n->scale, &n->shift})
      all.insert(all.end(), part->begin(), part->end());
  return all;
}

// Sets the number of the program's threads for a scope.
class thread_scope {
 public:
  explicit thread_scope(int count) : before_(static_cast<int>(thread_count())) {
    set_thread_count(count);
  }
  thread_scope(const thread_scope&) = delete;
  thread_scope& operator=(const thread_scope&) = delete;
  ~thread_scope() { set_thread_count(before_); }

 private:
  int before_;
};

} // namespace

TEST_CASE("gradients agree with another implementation in every family") {
  const std::map<std::string, projection> names = {
      {"q_proj", projection::q},      {"k_proj", projection::k},   {"v_proj", projection::v},
      {"o_proj", projection::o},      {"out_proj", projection::o}, {"gate_proj", projection::gate},
      {"up_proj", projection::up},    {"fc1", projection::up},     {"fc2", projection::down},
      {"down_proj", projection::down}};
  for (const std::string& name : families) {
    CAPTURE(name);
    const fixture f(name);
    for (const std::uint64_t limit : {std::uint64_t{1} << 30, std::uint64_t{0}}) {
      const language_model model = language_model::open(f.directory, {.memory_limit = limit});
      const pass p = run_pass(model, f.tokens, f.window());
      std::ifstream file(f.directory / "gradients.json");
      const auto expected = nlohmann::json::parse(file);
      const auto check = [](const nlohmann::json& summary, const std::vector<float>& gradient) {
        const double length = summary.at(0);
        double product = 0;
        for (std::size_t i = 0; i < gradient.size(); ++i)
          product += static_cast<double>(gradient[i]) * std::cos(static_cast<double>(i));
        CHECK(std::abs(norm(gradient) - length) < 1e-4 * length);
        CHECK(std::abs(product - summary.at(1).get<double>()) < 1e-4 * length);
      };
      CHECK(std::abs(p.loss.sum - expected.at("loss").get<double>()) < 1e-5 * p.loss.sum);
      CHECK(p.loss.predicted == f.windows() * (f.window() - 1));
      check(expected.at("embeddings"), p.gradients[0]);
      const auto& layers = expected.at("layers");
      REQUIRE(layers.size() == p.g.size());
      for (std::size_t layer = 0; layer < layers.size(); ++layer) {
        REQUIRE(layers[layer].size() == p.g[layer].size());
        for (const auto& [key, summary] : layers[layer].items()) {
          CAPTURE(layer, key);
          const std::size_t dot = key.find('.'); // behind the number of an expert
          const matrix_place place =
              dot == std::string::npos
                  ? matrix_place(names.at(key))
                  : matrix_place(names.at(key.substr(dot + 1)), std::stoll(key));
          check(summary, p.g[layer].at(place.index()));
        }
      }
    }
  }
}

TEST_CASE("the gradient at hidden states is the slope of the loss") {
  for (const std::string& name : families) {
    CAPTURE(name);
    const fixture f(name);
    const language_model model = smooth_model(f);
    const pass p = run_pass(model, f.tokens, f.window());
    for (std::size_t layer = 0; layer < p.inputs.size(); ++layer) {
      CAPTURE(layer);
      check_gradient(p.gradients[layer], [&](double step, const std::vector<float>& d) {
        return loss_from(model, f.tokens, f.window(), static_cast<std::int64_t>(layer),
                         plus(p.inputs[layer], step, d));
      });
    }
  }
}

TEST_CASE("the gradients of parameters are the slopes of the loss") {
  for (const std::string& name : families) {
    CAPTURE(name);
    const fixture f(name);
    const language_model model = smooth_model(f);
    const pass p = run_pass(model, f.tokens, f.window());
    const std::int64_t layer = f.config.experts > 0 ? 1 : 0; // a mixture, where there is one
    const auto at = static_cast<std::size_t>(layer);
    const layer_gradients& sums = p.parameters[at];
    const auto check = [&](const std::vector<float>& gradient, const auto& change) {
      if (gradient.empty()) return;
      check_gradient(gradient, [&](double step, const std::vector<float>& d) {
        language_model changed = model;
        layer_weights weights = model.layer(layer);
        change(weights, step, d);
        changed.replace_layer(layer, std::move(weights));
        return loss_from(changed, f.tokens, f.window(), layer, p.inputs[at]);
      });
    };
    for (const matrix_place& kind : places_of(model.layer(layer))) {
      CAPTURE(name_of(kind));
      check(sums[kind].dense, [&](layer_weights& w, double step, const std::vector<float>& d) {
        const linear& l = w[kind];
        w[kind] = make_linear({l.out(), l.in(), plus(l.dense.values(), step, d)}, l.bias);
      });
      check(sums[kind].bias, [&](layer_weights& w, double step, const std::vector<float>& d) {
        w[kind].bias = plus(w[kind].bias, step, d);
      });
    }
    const auto check_vector = [&](const std::vector<float>& gradient, const auto& of) {
      check(gradient, [&](layer_weights& w, double step, const std::vector<float>& d) {
        of(w) = plus(of(w), step, d);
      });
    };
    check_vector(
        sums.attention_norm.scale, [](auto& w) -> auto& { return w.attention_norm.scale; });
    check_vector(
        sums.attention_norm.shift, [](auto& w) -> auto& { return w.attention_norm.shift; });
    check_vector(
        sums.mlp_norm.scale, [](auto& w) -> auto& { return w.mlp_norm.scale; });
    check_vector(
        sums.mlp_norm.shift, [](auto& w) -> auto& { return w.mlp_norm.shift; });
    check_vector(
        sums.q_norm.scale, [](auto& w) -> auto& { return w.q_norm; });
    check_vector(
        sums.k_norm.scale, [](auto& w) -> auto& { return w.k_norm; });
    CHECK(sums.q_norm.scale.empty() == !f.config.qk_norm);
    CHECK(sums.mlp_norm.shift.empty() == (f.config.family != model_family::opt));
  }
}

TEST_CASE("every activation has its slope") {
  for (const activation_kind kind : {activation_kind::silu, activation_kind::relu,
                                     activation_kind::gelu, activation_kind::gelu_tanh}) {
    const std::vector<float> factor = random_values(41, 2);
    const std::vector<float> at_output = random_values(41, 3);
    std::vector<float> x = random_values(41, 1);
    for (float& value : x)
      value *= 6.0f;
    x[7] = 0.0f;
    for (const bool gated : {false, true}) {
      CAPTURE(static_cast<int>(kind), gated);
      std::vector<float> g = at_output;
      std::vector<float> factor_gradient(x.size());
      activate_back(kind, x.data(), gated ? factor.data() : nullptr, g.data(),
                    gated ? factor_gradient.data() : nullptr, 41);
      for (std::size_t i = 0; i < x.size(); ++i) {
        const auto value = [&](float at) {
          activate(kind, nullptr, &at, 1);
          return static_cast<double>(at);
        };
        // The rounding of 6 over h is 3e-5, the truncation below 1e-4.
        const float h = 1.0f / 64;
        if (kind == activation_kind::relu && std::abs(x[i]) <= h) {
          CHECK(g[i] == 0.0f); // at the kink, as PyTorch has it
          continue;
        }
        const double from = static_cast<double>(at_output[i]);
        const double measured = (value(x[i] + h) - value(x[i] - h)) * 32 * from *
                                (gated ? static_cast<double>(factor[i]) : 1.0);
        CHECK(std::abs(static_cast<double>(g[i]) - measured) < 2e-4);
        if (gated)
          CHECK(std::abs(static_cast<double>(factor_gradient[i]) - value(x[i]) * from) < 1e-5);
      }
    }
    if (kind == activation_kind::relu) continue; // see smooth_model
    for (const std::string name : {"llama", "opt"}) {
      CAPTURE(name, static_cast<int>(kind));
      const fixture f(name);
      const language_model model = with_activation(f, kind);
      const pass p = run_pass(model, f.tokens, f.window());
      check_gradient(p.gradients[0], [&](double step, const std::vector<float>& d) {
        return loss_from(model, f.tokens, f.window(), 0, plus(p.inputs[0], step, d));
      });
    }
  }
}

TEST_CASE("an observer sees the modules in order, with the inputs of the forward pass") {
  for (const std::string& name : families) {
    CAPTURE(name);
    const fixture f(name);
    const language_model model = language_model::open(f.directory);
    const auto tokens = static_cast<std::int64_t>(f.tokens.size());
    const std::int64_t window = 8;
    std::vector<float> hidden(static_cast<std::size_t>(tokens * f.config.hidden_size));
    cpu_forward forward(f.config);
    forward.embed(model.outer(), f.tokens, window, hidden.data());
    const std::vector<float> before = hidden;
    std::map<std::size_t, std::vector<float>> inputs; // by layer_input::index
    const input_observer input = [&](const input_observation& seen) {
      auto& to = inputs[seen.input.index()];
      to.insert(to.end(), seen.x.host(), seen.x.host() + seen.x.rows * seen.x.cols);
    };
    forward.layer(model.layer(0), hidden.data(), tokens, window, &input);

    const std::vector<linear_module> modules = linear_modules(f.config, 0);
    std::vector<std::int64_t> reached(modules.size(), 0); // tokens
    std::int64_t groups = 0;
    std::size_t next = 0;
    const gradient_observer observer = [&](const linear_observation& seen) {
      if (seen.place == modules.front().place) {
        ++groups;
        next = 0;
      }
      // An expert that no token went to is passed over.
      while (next < modules.size() && modules[next].place != seen.place) {
        CHECK(modules[next].place.expert != no_expert);
        ++next;
      }
      REQUIRE(next < modules.size());
      const auto& x = inputs[modules[next].input.index()];
      const std::span<const float> piece =
          std::span(x).subspan(static_cast<std::size_t>(reached[next] * seen.in),
                               static_cast<std::size_t>(seen.tokens * seen.in));
      CHECK(relative_error({seen.x, piece.size()}, piece) < rounding);
      reached[next] += seen.tokens;
      ++next;
    };
    cpu_backward(f.config, {.private_tokens = 24})
        .layer(model.layer(0), before.data(), tokens, window, hidden.data(),
               {.observer = &observer});
    CHECK(groups == 4); // of three windows, and one
    for (std::size_t i = 0; i < modules.size(); ++i)
      CHECK(reached[i] * modules[i].in ==
            static_cast<std::int64_t>(inputs[modules[i].input.index()].size()));
    CHECK(reached[0] == tokens);
  }
}

TEST_CASE("a linear layer's gradients are those of its matrix, input by input") {
  for (const std::string& name : families) {
    CAPTURE(name);
    const fixture f(name);
    const pass p = run_pass(language_model::open(f.directory), f.tokens, f.window());
    const language_model model = language_model::open(f.directory);
    for (std::size_t layer = 0; layer < p.g.size(); ++layer)
      for (const auto& [index, g] : p.g[layer]) {
        const std::int64_t out = model.layer(static_cast<std::int64_t>(layer)).linears[index].out();
        const std::int64_t tokens = static_cast<std::int64_t>(g.size()) / out;
        CHECK(relative_error(p.parameters[layer].linears[index].dense,
                             product(transposed(g, tokens, out), p.x[layer].at(index), tokens)) <
              rounding);
      }
  }
}

TEST_CASE("factored matrices have the gradients of their product") {
  for (const std::string& name : families)
    for (const bool pivoted : {false, true}) {
      CAPTURE(name, pivoted);
      const fixture f(name);
      const low_rank_models models = make_low_rank(f, pivoted);
      const pass factored = run_pass(models.factored, f.tokens, f.window());
      const pass dense = run_pass(models.dense, f.tokens, f.window());
      // Rounding of the product grows through two layers.
      const double close = 10 * rounding;
      for (std::size_t layer = 0; layer < dense.g.size(); ++layer) {
        CHECK(relative_error(factored.gradients[layer], dense.gradients[layer]) < close);
        for (const auto& [index, g] : dense.g[layer]) {
          CAPTURE(layer, index);
          CHECK(relative_error(factored.g[layer].at(index), g) < close);
          const linear& l = models.factored.layer(static_cast<std::int64_t>(layer)).linears[index];
          const linear_gradients& sums = factored.parameters[layer].linears[index];
          const std::vector<float>& whole = dense.parameters[layer].linears[index].dense;
          CHECK(sums.dense.empty());
          const std::int64_t r = l.rank();
          if (pivoted) {
            const std::span order(l.order);
            const auto split = static_cast<std::size_t>(r);
            const auto others = rows_of(whole, order.subspan(split), l.in());
            const auto from_others =
                product(transposed(l.c.values(), l.out() - r, r), others, l.out() - r);
            CHECK(relative_error(sums.z, plus(rows_of(whole, order.first(split), l.in()), 1.0,
                                              from_others)) < close);
            CHECK(relative_error(sums.c, product(others, transposed(l.z.values(), r, l.in()),
                                                 l.in())) < close);
          } else {
            CHECK(relative_error(
                      sums.u, product(whole, transposed(l.v.values(), r, l.in()), l.in())) < close);
            CHECK(relative_error(sums.v, product(transposed(l.u.values(), l.out(), r), whole,
                                                 l.out())) < close);
          }
          // Without positions in it, no bias of k changes the probabilities.
          if (!l.bias.empty() && !(name == "opt" && index == matrix_place(projection::k).index()))
            CHECK(relative_error(sums.bias, dense.parameters[layer].linears[index].bias) < close);
        }
      }
    }
}

TEST_CASE("no gradient reaches a token that its layer's output does not depend on") {
  for (const std::string& name : families) {
    CAPTURE(name);
    const fixture f(name);
    const language_model model = language_model::open(f.directory);
    const pass p = run_pass(model, f.tokens, f.window());
    const auto tokens = static_cast<std::int64_t>(f.tokens.size());
    const std::int64_t width = f.config.hidden_size;
    const std::int64_t at = f.window() + 25; // in the second window
    std::vector<float> gradient(static_cast<std::size_t>(tokens * width));
    std::fill_n(gradient.begin() + at * width, width, 1.0f);
    cpu_backward(f.config).layer(model.layer(0), p.inputs[0].data(), tokens, f.window(),
                                 gradient.data());
    const std::int64_t reach = f.config.sliding_window.value_or(f.window());
    const std::int64_t first = std::max(f.window(), at - reach + 1);
    for (std::int64_t t = 0; t < tokens; ++t) {
      CAPTURE(t);
      const std::span<const float> row(gradient.data() + t * width,
                                       static_cast<std::size_t>(width));
      CHECK((norm(row) > 0) == (t >= first && t <= at));
    }
  }
}

TEST_CASE("groups of windows change gradients by rounding, threads too") {
  for (const std::string& name : families) {
    CAPTURE(name);
    const fixture f(name);
    const language_model model = language_model::open(f.directory);
    const std::int64_t window = 10;
    const label_options drawn{.source = label_source::drawn, .seed = 3};
    const pass whole = run_pass(model, f.tokens, window, drawn);
    const auto check = [&](const pass& other) {
      CHECK(other.loss.labels == whole.loss.labels);
      CHECK(std::abs(other.loss.sum - whole.loss.sum) < rounding * whole.loss.sum);
      CHECK(relative_error(without_observed_order(other), without_observed_order(whole)) <
            rounding);
      for (std::size_t layer = 0; layer < whole.parameters.size(); ++layer)
        CHECK(relative_error(all_parameters(other.parameters[layer]),
                             all_parameters(whole.parameters[layer])) < rounding);
    };
    check(run_pass(model, f.tokens, window, drawn, {.private_tokens = 29}));
    check(run_pass(model, f.tokens, window, drawn, {.private_buffers = 0, .shared_tokens = 31}));
    for (const int threads : {1, 3}) {
      const thread_scope scope(threads);
      check(run_pass(model, f.tokens, window, drawn, {.private_tokens = 29}));
      const pass again = run_pass(model, f.tokens, window, drawn, {.private_buffers = 0});
      check(again);
      const pass equal = run_pass(model, f.tokens, window, drawn, {.private_buffers = 0});
      CHECK(without_observed_order(again) == without_observed_order(equal));
      CHECK(all_parameters(again.parameters[0]) == all_parameters(equal.parameters[0]));
    }
  }
}

TEST_CASE("a layer's output, the loss's gradient there and those of parameters come in one pass") {
  const fixture f("qwen3");
  for (const bool pivoted : {false, true}) {
    const low_rank_models models = make_low_rank(f, pivoted);
    const auto tokens = static_cast<std::int64_t>(f.tokens.size());
    const std::int64_t window = 10;
    const std::int64_t width = f.config.hidden_size;
    const pass p = run_pass(models.factored, f.tokens, window);
    const std::vector<float> target = random_values(tokens * width, 5);
    // ½‖output − target‖², and its gradient.
    double error = 0;
    std::int64_t next = 0;
    std::vector<float> seen;
    const output_gradient against_target = [&](std::int64_t first, std::int64_t count,
                                               float* output) {
      CHECK(first == next);
      CHECK(count % window == 0);
      next = first + count;
      seen.insert(seen.end(), output, output + count * width);
      for (std::int64_t i = 0; i < count * width; ++i) {
        output[i] -= target[static_cast<std::size_t>(first * width + i)];
        error += static_cast<double>(output[i]) * static_cast<double>(output[i]) / 2;
      }
    };
    const auto error_of = [&](const layer_weights& weights) {
      std::vector<float> hidden = p.inputs[0];
      cpu_forward(f.config).layer(weights, hidden.data(), tokens, window, nullptr);
      const std::vector<float> difference = plus(hidden, -1.0, target);
      return dot(difference, difference) / 2;
    };
    const layer_weights& weights = models.factored.layer(0);
    layer_gradients sums = zero_gradients(weights, everything(weights));
    cpu_backward backward(f.config, {.private_tokens = 29});
    backward.layer(weights, p.inputs[0].data(), tokens, window, against_target, nullptr,
                   {.parameters = &sums});
    CHECK(next == tokens);
    CHECK(relative_error(seen, p.inputs[1]) < rounding);
    CHECK(std::abs(error - error_of(weights)) < rounding * error);

    const auto check = [&](const std::vector<float>& gradient, const weight_matrix& part,
                           const auto& with) {
      check_gradient(gradient, [&](double step, const std::vector<float>& d) {
        layer_weights changed = weights;
        with(changed, weight_matrix(part.rows(), part.cols(), plus(part.values(), step, d)));
        return error_of(changed);
      });
    };
    for (const projection kind : {projection::q, projection::gate, projection::down}) {
      CAPTURE(pivoted, name_of(kind));
      const linear& l = weights[kind];
      if (pivoted) {
        check(sums[kind].c, l.c, [&](auto& w, weight_matrix m) { w[kind].c = std::move(m); });
        check(sums[kind].z, l.z, [&](auto& w, weight_matrix m) { w[kind].z = std::move(m); });
      } else {
        check(sums[kind].u, l.u, [&](auto& w, weight_matrix m) { w[kind].u = std::move(m); });
        check(sums[kind].v, l.v, [&](auto& w, weight_matrix m) { w[kind].v = std::move(m); });
      }
    }

    // Asking for the gradient at the input changes nothing; only what is chosen is summed.
    layer_gradients again = zero_gradients(weights, everything(weights));
    std::vector<float> unused(p.inputs[0].size());
    next = 0;
    backward.layer(weights, p.inputs[0].data(), tokens, window, against_target, unused.data(),
                   {.parameters = &again});
    CHECK(all_parameters(again) == all_parameters(sums));
    gradient_choice choice;
    choice.matrices[static_cast<std::size_t>(projection::o)] = true;
    layer_gradients few = zero_gradients(weights, choice);
    std::vector<float> at_input(p.inputs[0].size());
    next = 0;
    backward.layer(weights, p.inputs[0].data(), tokens, window, against_target, at_input.data(),
                   {.parameters = &few});
    CHECK(few[projection::q].u.empty());
    CHECK(few.mlp_norm.scale.empty());
    CHECK(few[projection::o].u == sums[projection::o].u);
    CHECK(few[projection::o].c == sums[projection::o].c);
    check_gradient(at_input, [&](double step, const std::vector<float>& d) {
      std::vector<float> hidden = plus(p.inputs[0], step, d);
      cpu_forward(f.config).layer(weights, hidden.data(), tokens, window, nullptr);
      const std::vector<float> difference = plus(hidden, -1.0, target);
      return dot(difference, difference) / 2;
    });
  }
}

TEST_CASE("labels are drawn from the model's own distribution") {
  // All positions have one hidden state and so one distribution over five tokens.
  model_config config = fixture("llama").config;
  config.vocab = 5;
  config.hidden_size = 4;
  outer_weights outer;
  outer.head = weight_matrix(5, 4, random_values(20, 3));
  outer.final_norm.scale = {0.5f, 1.0f, 0.5f, 1.0f};
  constexpr std::int64_t tokens = 4000;
  const std::vector<std::int32_t> texts(tokens, 0);
  std::vector<float> hidden;
  for (std::int64_t t = 0; t < tokens; ++t)
    hidden.insert(hidden.end(), {0.5f, -1.0f, 0.25f, 2.0f});
  std::vector<float> logits(static_cast<std::size_t>(5));
  cpu_forward(config).logits(outer, hidden.data(), 1, logits.data());
  double total = 0;
  for (const float logit : logits)
    total += std::exp(static_cast<double>(logit));

  const auto draw = [&](std::uint64_t seed) {
    std::vector<float> states = hidden;
    return cpu_backward(config).loss(outer, texts, 100, {label_source::drawn, seed}, states.data());
  };
  const loss_result drawn = draw(1);
  CHECK(drawn.predicted == tokens);
  CHECK(draw(1).labels == drawn.labels);
  CHECK(draw(2).labels != drawn.labels);
  // χ² with four degrees of freedom exceeds 23.5 once in 10 000 seeds.
  double chi_squared = 0;
  double entropy = 0;
  double spread = 0;
  for (std::int32_t token = 0; token < 5; ++token) {
    const double logit = logits[static_cast<std::size_t>(token)];
    const double p = std::exp(logit) / total;
    CHECK(p > 0.005);
    const auto count = static_cast<double>(std::ranges::count(drawn.labels, token));
    chi_squared += (count - p * tokens) * (count - p * tokens) / (p * tokens);
    entropy -= p * std::log(p);
    spread += p * std::log(p) * std::log(p);
  }
  CHECK(chi_squared < 23.5);
  // The mean loss is the entropy, within four standard deviations.
  const double deviation = std::sqrt((spread - entropy * entropy) / tokens);
  CHECK(std::abs(drawn.sum / tokens - entropy) < 4 * deviation);
}

TEST_CASE("a loss over several blocks of logits is that of its windows") {
  model_config config = fixture("llama").config;
  config.vocab = 9000;
  config.hidden_size = 4;
  outer_weights outer;
  outer.head = weight_matrix(config.vocab, 4, random_values(config.vocab * 4, 3));
  outer.final_norm.scale = {0.5f, 1.0f, 0.5f, 1.0f};
  const std::int64_t window = 25;
  const std::int64_t tokens = 1100;
  REQUIRE(logits_block(config.vocab, tokens) == 512);
  std::vector<std::int32_t> texts;
  for (std::int64_t t = 0; t < tokens; ++t)
    texts.push_back(static_cast<std::int32_t>(t * t % config.vocab));
  const std::vector<float> hidden = random_values(tokens * 4, 6);
  cpu_backward backward(config);
  std::vector<float> whole = hidden;
  const double sum = backward.loss(outer, texts, window, {}, whole.data()).sum;
  std::vector<float> parts = hidden;
  double sum_of_parts = 0;
  for (std::int64_t t = 0; t < tokens; t += window)
    sum_of_parts += backward
                        .loss(outer, {texts.data() + t, static_cast<std::size_t>(window)}, window,
                              {}, parts.data() + t * 4)
                        .sum;
  CHECK(std::abs(sum - sum_of_parts) < 1e-6 * sum);
  CHECK(relative_error(whole, parts) < rounding);

  // One distribution everywhere: draws of one block do not come again in the next.
  std::vector<float> same(hidden.size(), 1.0f);
  const auto labels =
      backward.loss(outer, texts, window, {label_source::drawn, 1}, same.data()).labels;
  std::int64_t equal = 0;
  for (std::size_t i = 0; i < 512; ++i)
    equal += labels[i] == labels[i + 512] ? 1 : 0;
  CHECK(equal < 50);
}

TEST_CASE("the last position of a window has no true label and no gradient") {
  const fixture f("llama");
  const language_model model = language_model::open(f.directory);
  const pass p = run_pass(model, f.tokens, 20);
  CHECK(p.loss.predicted == 76);
  const std::int64_t width = f.config.hidden_size;
  const auto tokens = static_cast<std::int64_t>(f.tokens.size());
  for (std::int64_t t = 0; t < tokens; ++t) {
    const auto at = static_cast<std::size_t>(t);
    const bool last = t % 20 == 19;
    CHECK(p.loss.labels[at] == (last ? -1 : f.tokens[at + 1]));
    const std::span<const float> row(p.gradients.back().data() + t * width,
                                     static_cast<std::size_t>(width));
    CHECK((norm(row) == 0) == last);
  }
}

TEST_CASE("the backward pass refuses what it cannot compute") {
  const fixture f("llama");
  const language_model model = language_model::open(f.directory);
  cpu_backward backward(f.config);
  std::vector<float> hidden(f.tokens.size() * static_cast<std::size_t>(f.config.hidden_size), 1.0f);
  CHECK_THROWS_WITH(backward.loss(model.outer(), f.tokens, 7, {}, hidden.data()),
                    contains_text("80 tokens are not whole windows of 7"));
  std::vector<float> gradient = hidden;
  CHECK_THROWS_WITH(backward.layer(model.layer(0), hidden.data(), 80, 7, gradient.data()),
                    contains_text("80 tokens are not whole windows of 7"));
  std::vector<std::int32_t> texts = f.tokens;
  texts[7] = 80;
  CHECK_THROWS_WITH(backward.loss(model.outer(), texts, 40, {}, hidden.data()),
                    contains_text("token id 80 outside the vocabulary of 80"));
  hidden[100] = std::numeric_limits<float>::quiet_NaN();
  for (const label_source source : {label_source::next_token, label_source::drawn}) {
    std::vector<float> states = hidden;
    CHECK_THROWS_WITH(backward.loss(model.outer(), f.tokens, 40, {source, 1}, states.data()),
                      contains_text("not finite"));
  }
}

} // namespace ressvd_llm::backward_test
