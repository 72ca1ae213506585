// SPDX-License-Identifier: Apache-2.0
#include "fixture.hpp"
#include "model/linear.hpp"
#include "support/catch.hpp"

using namespace ressvd_llm;
using namespace ressvd_llm::testing;

namespace {

// x·Wᵀ in float64.
std::vector<float> product(const std::vector<float>& x, const std::vector<float>& w,
                           std::int64_t in) {
  const std::int64_t tokens = static_cast<std::int64_t>(x.size()) / in;
  const std::int64_t out = static_cast<std::int64_t>(w.size()) / in;
  std::vector<float> y;
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t o = 0; o < out; ++o) {
      double sum = 0.0;
      for (std::int64_t i = 0; i < in; ++i)
        sum += static_cast<double>(x[static_cast<std::size_t>(t * in + i)]) *
               static_cast<double>(w[static_cast<std::size_t>(o * in + i)]);
      y.push_back(static_cast<float>(sum));
    }
  return y;
}

} // namespace

TEST_CASE("a linear layer applies its matrix and bias to any number of tokens") {
  // Few and many tokens are shared among threads in different ways.
  for (const std::int64_t tokens : {1, 3, 40, 1000}) {
    CAPTURE(tokens);
    const std::int64_t in = 70;
    const std::int64_t out = 90;
    const std::vector<float> x = random_values(tokens * in, 1);
    const std::vector<float> w = random_values(out * in, 2);
    const std::vector<float> bias = random_values(out, 3);
    const std::vector<float> wx = product(x, w, in);
    std::vector<float> expected = wx;
    for (std::size_t i = 0; i < expected.size(); ++i)
      expected[i] += bias[i % bias.size()];

    std::vector<float> y(wx.size(), 7.0f);
    make_linear({out, in, w}, bias).apply(x.data(), tokens, y.data());
    CHECK(relative_error(y, expected) < rounding);
    make_linear({out, in, w}, {}).apply(x.data(), tokens, y.data());
    CHECK(relative_error(y, wx) < rounding);
    make_linear({out, in, w}, bias).apply_add(x.data(), tokens, y.data());
    for (std::size_t i = 0; i < expected.size(); ++i)
      expected[i] += wx[i];
    CHECK(relative_error(y, expected) < rounding);
  }
}

TEST_CASE("a factored layer applies the product of its factors") {
  const std::int64_t tokens = 200, in = 50, out = 60, rank = 7;
  const std::vector<float> x = random_values(tokens * in, 1);
  const std::vector<float> u = random_values(out * rank, 2);
  const std::vector<float> v = random_values(rank * in, 3);
  const std::vector<float> bias = random_values(out, 4);
  const linear layer = make_linear({out, rank, u}, {rank, in, v}, bias);
  CHECK(layer.factored());
  CHECK(layer.rank() == rank);
  CHECK(layer.out() == out);
  CHECK(layer.in() == in);
  CHECK(layer.parameters() == rank * (in + out) + out);
  std::vector<float> expected = product(product(x, v, in), u, rank);
  for (std::size_t i = 0; i < expected.size(); ++i)
    expected[i] += bias[i % bias.size()];
  std::vector<float> y(expected.size());
  layer.apply(x.data(), tokens, y.data());
  CHECK(relative_error(y, expected) < rounding);
}

TEST_CASE("a pivoted layer applies the dense matrix it stands for") {
  struct size {
    std::int64_t out, in, rank;
  };
  for (const auto& [out, in, rank] :
       {size{40, 90, 11}, size{50, 50, 49}, size{90, 40, 1}, size{2, 2, 1}, size{700, 60, 37}}) {
    CAPTURE(out, in, rank);
    const std::vector<float> c = random_values((out - rank) * rank, 2);
    const std::vector<float> z = random_values(rank * in, 3);
    const std::vector<float> bias = random_values(out, 4);
    const std::vector<std::int32_t> order = random_order(out, 5);
    // Ŵ, row by row: Zᵀ's columns are what product() takes as rows.
    std::vector<float> transposed;
    for (std::int64_t j = 0; j < in; ++j)
      for (std::int64_t i = 0; i < rank; ++i)
        transposed.push_back(z[static_cast<std::size_t>(i * in + j)]);
    std::vector<float> stacked = z;
    const std::vector<float> others = product(c, transposed, rank);
    stacked.insert(stacked.end(), others.begin(), others.end());
    std::vector<float> w(stacked.size());
    for (std::int64_t i = 0; i < out; ++i)
      std::copy_n(stacked.begin() + i * in, in,
                  w.begin() + order[static_cast<std::size_t>(i)] * in);

    const weight_matrix c_matrix(out - rank, rank, c);
    const weight_matrix z_matrix(rank, in, z);
    const linear biased = make_pivoted_linear(c_matrix, z_matrix, order, bias);
    const linear unbiased = make_pivoted_linear(c_matrix, z_matrix, order, {});
    CHECK(biased.pivoted());
    CHECK(biased.factored());
    CHECK_FALSE(biased.empty());
    CHECK(biased.out() == out);
    CHECK(biased.in() == in);
    CHECK(biased.rank() == rank);
    CHECK(biased.parameters() == rank * (out + in - rank) + out);
    CHECK(unbiased.parameters() == rank * (out + in - rank));

    for (const std::int64_t tokens : {1, 3, 40, 1000}) {
      CAPTURE(tokens);
      const std::vector<float> x = random_values(tokens * in, 1);
      const std::vector<float> wx = product(x, w, in);
      std::vector<float> expected = wx;
      for (std::size_t i = 0; i < expected.size(); ++i)
        expected[i] += bias[i % bias.size()];
      std::vector<float> y(wx.size(), 7.0f);
      biased.apply(x.data(), tokens, y.data());
      CHECK(relative_error(y, expected) < rounding);
      unbiased.apply(x.data(), tokens, y.data());
      CHECK(relative_error(y, wx) < rounding);
      biased.apply_add(x.data(), tokens, y.data());
      for (std::size_t i = 0; i < expected.size(); ++i)
        expected[i] += wx[i];
      CHECK(relative_error(y, expected) < rounding);
    }
  }
}

TEST_CASE("a mapped matrix is used in its own element type, piece by piece") {
  // More elements than are converted at a time (2^20), at an odd address.
  const std::int64_t rows = 1500, cols = 800, tokens = 5;
  for (const dtype type : {dtype::f32, dtype::f16, dtype::bf16}) {
    CAPTURE(name_of(type));
    const std::vector<float> values = random_values(rows * cols, 5);
    std::vector<std::byte> file(values.size() * size_of(type) + 1);
    encode(values, type, file.data() + 1);
    const weight_matrix mapped(
        tensor_view{.name = "w", .type = type, .shape = {rows, cols}, .data = file.data() + 1});
    CHECK_FALSE(mapped.in_memory());
    const std::vector<float> rounded = mapped.values();
    // Half a unit in the last place of bfloat16's eight bits.
    CHECK(relative_error(rounded, values) < 1.0 / 256);

    const std::vector<float> x = random_values(tokens * cols, 6);
    std::vector<float> y(static_cast<std::size_t>(tokens * rows));
    multiply_add(x.data(), tokens, mapped, y.data());
    CHECK(relative_error(y, product(x, rounded, cols)) < rounding);
  }
}

TEST_CASE("a linear layer refuses parts that do not fit") {
  const auto matrix = [](std::int64_t rows, std::int64_t cols) {
    return weight_matrix(rows, cols, random_values(rows * cols, 1));
  };
  CHECK_THROWS_WITH(make_linear(matrix(4, 3), matrix(2, 5), {}),
                    contains_text("factors 4 x 3 and 2 x 5 do not fit"));
  CHECK_THROWS_WITH(make_linear(matrix(4, 3), std::vector<float>(3)),
                    contains_text("bias of 3 for a 4 x 3 matrix"));
  CHECK_THROWS_WITH(make_linear(matrix(4, 2), matrix(2, 3), std::vector<float>(3)),
                    contains_text("bias of 3 for factors 4 x 2 and 2 x 3"));
  const auto pivoted = [&](const weight_matrix& c, const weight_matrix& z,
                           std::vector<std::int32_t> order, std::size_t bias = 0) {
    return make_pivoted_linear(c, z, std::move(order), std::vector<float>(bias));
  };
  CHECK(pivoted(matrix(2, 1), matrix(1, 3), {2, 0, 1}).out() == 3);
  CHECK_THROWS_AS(pivoted(matrix(2, 1), matrix(1, 3), {0, 1}), std::invalid_argument);
  CHECK_THROWS_WITH(pivoted(matrix(2, 2), matrix(1, 3), {0, 1, 2}),
                    contains_text("C 2 x 2 and Z 1 x 3 do not fit"));
  CHECK_THROWS_WITH(pivoted({}, matrix(1, 3), {0}), contains_text("do not fit"));
  CHECK_THROWS_WITH(pivoted(matrix(2, 1), {}, {0, 1}), contains_text("do not fit"));
  for (const std::vector<std::int32_t>& order :
       {std::vector{0, 1}, {0, 1, 2, 3}, {0, 1, 1}, {0, 1, 3}, {-1, 0, 1}}) {
    CHECK_THROWS_WITH(pivoted(matrix(2, 1), matrix(1, 3), order),
                      contains_text("is no permutation for C 2 x 1 and Z 1 x 3"));
  }
  CHECK_THROWS_WITH(pivoted(matrix(2, 1), matrix(1, 3), {2, 0, 1}, 2),
                    contains_text("bias of 2 for C 2 x 1 and Z 1 x 3"));
  CHECK_THROWS_WITH(weight_matrix(2, 3, std::vector<float>(5)),
                    contains_text("5 values for 2 x 3"));
}
