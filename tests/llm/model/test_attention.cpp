// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <vector>

#include "fixture.hpp"
#include "model/attention.hpp"
#include "support/catch.hpp"

using namespace ressvd_llm;
using namespace ressvd_llm::testing;

namespace {

double scale_of(const attention_head& head) {
  return head.scale > 0 ? head.scale : 1.0 / std::sqrt(static_cast<double>(head.head_dim));
}

double capped(const attention_head& head, double score) {
  return head.cap > 0 ? head.cap * std::tanh(score / head.cap) : score;
}

// softmax(cap(QKᵀ/√d))V over the visible keys, as in the definition, in float64.
std::vector<float> reference(const attention_head& head) {
  std::vector<float> out;
  for (std::int64_t i = 0; i < head.queries; ++i) {
    const std::int64_t position = head.first + i;
    const std::int64_t begin = head.sliding_window == 0
                                   ? 0
                                   : std::max<std::int64_t>(0, position - head.sliding_window + 1);
    std::vector<double> sums(static_cast<std::size_t>(head.head_dim));
    double total = 0.0;
    for (std::int64_t j = begin; j <= position; ++j) {
      double score = 0.0;
      for (std::int64_t d = 0; d < head.head_dim; ++d)
        score += static_cast<double>(head.q[i * head.q_stride + d]) *
                 static_cast<double>(head.k[j * head.kv_stride + d]);
      const double weight = std::exp(capped(head, scale_of(head) * score));
      total += weight;
      for (std::int64_t d = 0; d < head.head_dim; ++d)
        sums[static_cast<std::size_t>(d)] +=
            weight * static_cast<double>(head.v[j * head.kv_stride + d]);
    }
    for (const double value : sums)
      out.push_back(static_cast<float>(value / total));
  }
  return out;
}

// Gradients at Q, K and V, packed, from those at the outputs: as in the definition, in float64.
struct gradients {
  std::vector<float> q;
  std::vector<float> k;
  std::vector<float> v;
};

gradients reference_back(const attention_head& head, const std::vector<float>& at_out) {
  const std::int64_t dim = head.head_dim;
  const double scale = scale_of(head);
  const auto keys = static_cast<std::size_t>(head.first + head.queries);
  std::vector<double> q(at_out.size()), k(keys * static_cast<std::size_t>(dim)), v(k.size());
  for (std::int64_t i = 0; i < head.queries; ++i) {
    const std::int64_t position = head.first + i;
    const std::int64_t begin = head.sliding_window == 0
                                   ? 0
                                   : std::max<std::int64_t>(0, position - head.sliding_window + 1);
    std::vector<double> p(keys), slope(keys), slopes(keys); // slopes: of the cap
    const auto each = [&](const auto& body) {
      for (std::int64_t j = begin; j <= position; ++j)
        for (std::int64_t d = 0; d < dim; ++d)
          body(static_cast<std::size_t>(j), static_cast<std::size_t>(j * dim + d),
               static_cast<std::size_t>(i * dim + d),
               static_cast<double>(head.q[i * head.q_stride + d]),
               static_cast<double>(head.k[j * head.kv_stride + d]),
               static_cast<double>(head.v[j * head.kv_stride + d]));
    };
    each([&](std::size_t j, std::size_t, std::size_t at_q, double qd, double kd, double vd) {
      p[j] += scale * qd * kd;
      slope[j] += static_cast<double>(at_out[at_q]) * vd;
    });
    double total = 0;
    double mean = 0;
    for (auto j = static_cast<std::size_t>(begin); j <= static_cast<std::size_t>(position); ++j) {
      const double score = capped(head, p[j]);
      slopes[j] = head.cap > 0 ? 1 - std::pow(score / head.cap, 2) : 1;
      p[j] = std::exp(score);
      total += p[j];
      mean += p[j] * slope[j];
    }
    for (auto j = static_cast<std::size_t>(begin); j <= static_cast<std::size_t>(position); ++j) {
      p[j] /= total;
      slope[j] = p[j] * (slope[j] - mean / total) * slopes[j];
    }
    each([&](std::size_t j, std::size_t at_k, std::size_t at_q, double qd, double kd, double) {
      q[at_q] += scale * slope[j] * kd;
      k[at_k] += scale * slope[j] * qd;
      v[at_k] += p[j] * static_cast<double>(at_out[at_q]);
    });
  }
  return {{q.begin(), q.end()}, {k.begin(), k.end()}, {v.begin(), v.end()}};
}

// Rows of a strided matrix side by side.
std::vector<float> packed_rows(const std::vector<float>& a, std::int64_t offset,
                               std::int64_t stride, std::int64_t width) {
  std::vector<float> result;
  for (std::int64_t at = offset; at < std::ssize(a); at += stride)
    result.insert(result.end(), a.begin() + at, a.begin() + at + width);
  return result;
}

struct shape {
  std::int64_t queries;
  std::int64_t first;
  std::int64_t sliding_window;
  double scale = 0;
  double cap = 0;
};

// Shorter and longer than a block of queries, continued sequences, windows of all sizes.
constexpr std::array shapes = {shape{1, 0, 0},           shape{5, 0, 0},
                               shape{64, 0, 0},          shape{150, 0, 0},
                               shape{150, 0, 1},         shape{150, 0, 7},
                               shape{150, 0, 100},       shape{150, 0, 1000},
                               shape{1, 90, 0},          shape{1, 90, 20},
                               shape{70, 33, 0},         shape{70, 33, 40},
                               shape{150, 0, 0, 0.2},    shape{150, 0, 0, 0.2, 1.5},
                               shape{70, 33, 40, 0, 0.7}};

} // namespace

TEST_CASE("attention over blocks equals its definition") {
  const std::int64_t head_dim = 12;
  for (const shape s : shapes) {
    CAPTURE(s.queries, s.first, s.sliding_window, s.scale, s.cap);
    const std::int64_t keys = s.first + s.queries;
    // Heads lie side by side: strides exceed the head size.
    const std::vector<float> q = random_values(s.queries * 30, 1);
    std::vector<float> k = random_values(keys * 20, 2);
    for (float& value : k)
      value *= 8.0f;
    const std::vector<float> v = random_values(keys * 20, 3);
    std::vector<float> out(static_cast<std::size_t>(s.queries * head_dim), 99.0f);
    const attention_head head{.head_dim = head_dim,
                              .queries = s.queries,
                              .first = s.first,
                              .sliding_window = s.sliding_window,
                              .scale = s.scale,
                              .cap = s.cap,
                              .q = q.data() + 3,
                              .q_stride = 30,
                              .k = k.data() + 5,
                              .v = v.data() + 5,
                              .kv_stride = 20,
                              .out = out.data(),
                              .out_stride = head_dim};
    float_buffer scratch;
    attend(head, scratch);
    CHECK(relative_error(out, reference(head)) < rounding);
  }
}

TEST_CASE("gradients of attention over blocks equal their definition") {
  const std::int64_t head_dim = 12;
  for (const shape s : shapes) {
    CAPTURE(s.queries, s.first, s.sliding_window, s.scale, s.cap);
    const std::int64_t keys = s.first + s.queries;
    const std::vector<float> q = random_values(s.queries * 30, 1);
    std::vector<float> k = random_values(keys * 20, 2);
    for (float& value : k)
      value *= 4.0f;
    const std::vector<float> v = random_values(keys * 20, 3);
    const attention_head head{.head_dim = head_dim,
                              .queries = s.queries,
                              .first = s.first,
                              .sliding_window = s.sliding_window,
                              .scale = s.scale,
                              .cap = s.cap,
                              .q = q.data() + 3,
                              .q_stride = 30,
                              .k = k.data() + 5,
                              .v = v.data() + 5,
                              .kv_stride = 20,
                              .out = nullptr,
                              .out_stride = 30};
    // The gradient at the outputs gives way to the one at the queries; those at K and V are added.
    std::vector<float> at_q = random_values(s.queries * 30, 4);
    const std::vector<float> at_out = at_q;
    std::vector<float> at_k(k.size(), 0.0f);
    std::vector<float> at_v(v.size(), 1.0f);
    float_buffer scratch;
    attend_back(
        head,
        {.out = at_q.data() + 3, .q = at_q.data() + 3, .k = at_k.data() + 5, .v = at_v.data() + 5},
        scratch);
    const gradients expected = reference_back(head, packed_rows(at_out, 3, 30, head_dim));
    std::vector<float> v_sums = expected.v;
    for (float& value : v_sums)
      value += 1.0f;
    CHECK(relative_error(packed_rows(at_v, 5, 20, head_dim), v_sums) < rounding);
    // One visible key has all the weight, wherever it is: no slope but rounding.
    const bool flat = s.sliding_window == 1 || keys == 1;
    if (flat) {
      for (const float value : packed_rows(at_q, 3, 30, head_dim))
        CHECK(std::abs(value) < 1e-5f);
    } else {
      CHECK(relative_error(packed_rows(at_q, 3, 30, head_dim), expected.q) < rounding);
      CHECK(relative_error(packed_rows(at_k, 5, 20, head_dim), expected.k) < rounding);
    }
    // Nothing is written between the rows.
    CHECK(packed_rows(at_k, 0, 20, 5) == std::vector<float>(static_cast<std::size_t>(keys * 5)));
    CHECK(packed_rows(at_q, 15, 30, 15) == packed_rows(at_out, 15, 30, 15));
  }
}

TEST_CASE("attention stands scores far apart") {
  // Two keys whose scores differ by hundreds: all weight goes to the larger, nothing overflows.
  const std::vector<float> q = {300.0f, 0.0f, 300.0f, 0.0f};
  const std::vector<float> k = {-5.0f, 0.0f, 5.0f, 0.0f};
  const std::vector<float> v = {1.0f, 2.0f, 3.0f, 4.0f};
  std::vector<float> out(4);
  float_buffer scratch;
  attend({.head_dim = 2,
          .queries = 2,
          .q = q.data(),
          .q_stride = 2,
          .k = k.data(),
          .v = v.data(),
          .kv_stride = 2,
          .out = out.data(),
          .out_stride = 2},
         scratch);
  CHECK(out == std::vector<float>{1.0f, 2.0f, 3.0f, 4.0f});
}

TEST_CASE("rotations keep lengths and depend on distance only") {
  model_config config;
  config.head_dim = 16;
  config.heads = 1;
  config.rope.theta = 500.0;
  for (const rope_scaling scaling :
       {rope_scaling::none, rope_scaling::linear, rope_scaling::llama3}) {
    config.rope.scaling = scaling;
    config.rope.factor = 4.0;
    config.rope.original_max_positions = 32;
    rope_table table(config);
    table.reserve(10);
    table.reserve(200);
    const std::vector<float> q = random_values(16, 1);
    const std::vector<float> k = random_values(16, 2);
    const auto product = [&](std::int64_t at_q, std::int64_t at_k) {
      std::vector<float> a = q;
      std::vector<float> b = k;
      table.rotate(a.data(), 1, at_q);
      table.rotate(b.data(), 1, at_k);
      double result = 0.0;
      for (std::size_t i = 0; i < a.size(); ++i)
        result += static_cast<double>(a[i]) * static_cast<double>(b[i]);
      return result;
    };
    double unrotated = 0.0;
    for (std::size_t i = 0; i < q.size(); ++i)
      unrotated += static_cast<double>(q[i]) * static_cast<double>(k[i]);
    // Angles up to 200 are rounded to float32: about 1e-5 absolute.
    std::vector<float> turned = q;
    table.rotate(turned.data(), 1, 150);
    table.rotate_back(turned.data(), 1, 150);
    CHECK(relative_error(turned, q) < 1e-6);
    CHECK_THAT(product(0, 0), WithinAbs(unrotated, 1e-6));
    CHECK_THAT(product(150, 150), WithinAbs(unrotated, 1e-5));
    CHECK_THAT(product(180, 170), WithinAbs(product(15, 5), 2e-4));
    CHECK(std::abs(product(15, 5) - unrotated) > 1e-2);
  }
}

TEST_CASE("Llama 3 scaling stretches long wavelengths and keeps short ones") {
  model_config config;
  config.head_dim = 16;
  config.heads = 1;
  config.rope.theta = 10000.0;
  rope_table plain(config);
  config.rope.scaling = rope_scaling::llama3;
  config.rope.factor = 8.0;
  config.rope.original_max_positions = 64;
  rope_table scaled(config);
  plain.reserve(9);
  scaled.reserve(9);
  const auto angle = [](const rope_table& table, std::size_t pair, std::int64_t position) {
    std::vector<float> row(16);
    row[pair] = 1.0f;
    table.rotate(row.data(), 1, position);
    return std::atan2(static_cast<double>(row[pair + 8]), static_cast<double>(row[pair]));
  };
  // Pair 0 has wavelength 2π, far below 64/4; pair 7 has 2π·3162, far above 64.
  CHECK_THAT(angle(scaled, 0, 1), WithinAbs(1.0, 1e-6));
  CHECK_THAT(angle(scaled, 7, 8), WithinAbs(angle(plain, 7, 1), 1e-9));
  // Pair 2, wavelength 2π·10 = 62.8, lies between: blend (64/62.8 − 1)/3 between 1/8 and 1.
  const double blend = (64.0 / (20.0 * 3.14159265358979) - 1.0) / 3.0;
  CHECK_THAT(angle(scaled, 2, 1), WithinAbs(0.1 * (blend + (1.0 - blend) / 8.0), 1e-7));
}
