// SPDX-License-Identifier: Apache-2.0
#include "model/linear.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include <Eigen/Core>

#include "model/parallel.hpp"

namespace ressvd_llm {

namespace {

using row_major = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using const_map = Eigen::Map<const row_major, 0, Eigen::OuterStride<>>;
using map = Eigen::Map<row_major, 0, Eigen::OuterStride<>>;

// Converted rows of a mapped matrix held at a time: 4 MiB, near the size of a second-level cache.
constexpr std::int64_t panel_elements = std::int64_t{1} << 20;

// Below this many tokens a thread, the rows of W are shared out instead of the tokens: each thread
// packs its whole share of the other operand, which must stay small beside the product.
constexpr std::int64_t min_tokens_per_thread = 64;

// A product smaller than this is not worth waking a thread.
constexpr std::int64_t min_flops_per_thread = 200'000;

// Calls block(first token, tokens, first column, columns) for pieces of a product of this many
// flops, tokens × columns, as the constants above want them shared.
template <class Block>
void share_product(std::int64_t tokens, std::int64_t columns, std::int64_t flops,
                   const Block& block) {
  const auto grain = [&](std::int64_t least, std::int64_t count) {
    const std::int64_t flops_each = flops / std::max<std::int64_t>(count, 1);
    return std::max(least, min_flops_per_thread / std::max<std::int64_t>(flops_each, 1));
  };
  if (tokens >= min_tokens_per_thread * thread_count()) {
    parallel_for(
        tokens, grain(min_tokens_per_thread, tokens),
        [&](std::int64_t first, std::int64_t last) { block(first, last - first, 0, columns); });
  } else {
    parallel_for(columns, grain(16, columns), [&](std::int64_t first, std::int64_t last) {
      block(0, tokens, first, last - first);
    });
  }
}

// y (tokens × rows, leading dimension ldy) += x·Wᵀ.
void multiply_add(const float* x, std::int64_t tokens, std::int64_t in, const float* w,
                  std::int64_t rows, float* y, std::int64_t ldy) {
  share_product(
      tokens, rows, 2 * tokens * in * rows,
      [&](std::int64_t token, std::int64_t token_count, std::int64_t row, std::int64_t row_count) {
        const const_map xs(x + token * in, token_count, in, Eigen::OuterStride<>(in));
        const const_map ws(w + row * in, row_count, in, Eigen::OuterStride<>(in));
        map ys(y + token * ldy + row, token_count, row_count, Eigen::OuterStride<>(ldy));
        ys.noalias() += xs * ws.transpose();
      });
}

// x (tokens × in) += g·W for g (tokens × rows, leading dimension ldg).
void multiply_add_back(const float* g, std::int64_t ldg, std::int64_t tokens, std::int64_t in,
                       const float* w, std::int64_t rows, float* x) {
  share_product(tokens, in, 2 * tokens * in * rows,
                [&](std::int64_t token, std::int64_t token_count, std::int64_t column,
                    std::int64_t column_count) {
                  const const_map gs(g + token * ldg, token_count, rows, Eigen::OuterStride<>(ldg));
                  const const_map ws(w + column, rows, column_count, Eigen::OuterStride<>(in));
                  map xs(x + token * in + column, token_count, column_count,
                         Eigen::OuterStride<>(in));
                  xs.noalias() += gs * ws;
                });
}

// Calls body(rows of W as float32, first row, number of rows) for all of W: at once where they lie
// in memory, else in panels.
template <class Body>
void for_each_panel(const weight_matrix& w, const Body& body) {
  if (w.in_memory()) {
    body(w.read_rows(0, w.rows(), nullptr), 0, w.rows());
    return;
  }
  const std::int64_t panel = std::clamp<std::int64_t>(panel_elements / w.cols(), 1, w.rows());
  float_buffer scratch;
  scratch.reserve(panel * w.cols());
  for (std::int64_t row = 0; row < w.rows(); row += panel) {
    const std::int64_t count = std::min(panel, w.rows() - row);
    parallel_for(count, std::max<std::int64_t>(1, 65'536 / w.cols()),
                 [&](std::int64_t first, std::int64_t last) {
                   w.read_rows(row + first, last - first, scratch.data() + first * w.cols());
                 });
    body(scratch.data(), row, count);
  }
}

std::string size_text(const weight_matrix& m) {
  return std::to_string(m.rows()) + " x " + std::to_string(m.cols());
}

void require_bias(const std::vector<float>& bias, std::int64_t out, const std::string& matrices) {
  if (!bias.empty() && static_cast<std::int64_t>(bias.size()) != out)
    throw std::invalid_argument("linear: bias of " + std::to_string(bias.size()) + " for " +
                                matrices);
}

// x·Wᵀ for every token, into y.
void multiply(const float* x, std::int64_t tokens, const weight_matrix& w, float_buffer& y) {
  y.reserve(tokens * w.rows());
  std::fill_n(y.data(), tokens * w.rows(), 0.0f);
  multiply_add(x, tokens, w, y.data());
}

// y = Wx + b, or y += Wx + b; row by row of y, which is in the cache then while its elements are
// reached out of order.
void apply_pivoted(const linear& l, const float* x, std::int64_t tokens, float* y, bool added,
                   float_buffer& own) {
  float_buffer others;
  multiply(x, tokens, l.z, own);
  multiply(own.data(), tokens, l.c, others);
  const std::int64_t out = l.out();
  const std::int64_t r = l.rank();
  const auto scatter = [&](const float* from, std::span<const std::int32_t> rows, float* to) {
    if (added) {
      for (const std::int32_t row : rows)
        to[row] += *from++;
    } else {
      for (const std::int32_t row : rows)
        to[row] = *from++;
    }
  };
  const auto rows = std::span(l.order);
  const auto own_rows = rows.first(static_cast<std::size_t>(r));
  const auto other_rows = rows.subspan(static_cast<std::size_t>(r));
  const std::int64_t grain = std::max<std::int64_t>(1, 65'536 / out);
  parallel_for(tokens, grain, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t token = first; token < last; ++token) {
      float* const to = y + token * out;
      scatter(own.data() + token * r, own_rows, to);
      scatter(others.data() + token * (out - r), other_rows, to);
      for (std::size_t i = 0; i < l.bias.size(); ++i)
        to[i] += l.bias[i];
    }
  });
}

} // namespace

weight_matrix::weight_matrix(std::int64_t rows, std::int64_t cols, std::vector<float> values)
    : weight_matrix(rows, cols, std::make_shared<const std::vector<float>>(std::move(values))) {}

weight_matrix::weight_matrix(std::int64_t rows, std::int64_t cols,
                             std::shared_ptr<const std::vector<float>> values)
    : rows_(rows), cols_(cols), values_(std::move(values)) {
  if (rows < 1 || cols < 1 || static_cast<std::int64_t>(values_->size()) != rows * cols)
    throw std::invalid_argument("weight_matrix: " + std::to_string(values_->size()) +
                                " values for " + size_text(*this));
}

weight_matrix::weight_matrix(tensor_view mapped) : mapped_(std::move(mapped)) {
  if (mapped_.shape.size() != 2)
    throw std::invalid_argument("weight_matrix: tensor " + mapped_.name + " has " +
                                std::to_string(mapped_.shape.size()) + " dimensions, not 2");
  rows_ = mapped_.shape[0];
  cols_ = mapped_.shape[1];
}

const float* weight_matrix::read_rows(std::int64_t first, std::int64_t count,
                                      float* scratch) const {
  if (in_memory()) return values_->data() + first * cols_;
  decode_rows(mapped_, first, count, {scratch, static_cast<std::size_t>(count * cols_)});
  return scratch;
}

std::vector<float> weight_matrix::values() const {
  if (in_memory()) return *values_;
  std::vector<float> result(static_cast<std::size_t>(rows_ * cols_));
  read_rows(0, rows_, result.data());
  return result;
}

void multiply_add(const float* x, std::int64_t tokens, const weight_matrix& w, float* y) {
  for_each_panel(w, [&](const float* rows, std::int64_t first, std::int64_t count) {
    multiply_add(x, tokens, w.cols(), rows, count, y + first, w.rows());
  });
}

void multiply_add_back(const float* g, std::int64_t tokens, const weight_matrix& w, float* x) {
  for_each_panel(w, [&](const float* rows, std::int64_t first, std::int64_t count) {
    multiply_add_back(g + first, w.rows(), tokens, w.cols(), rows, count, x);
  });
}

void add_outer_products(const float* g, std::int64_t out, const float* x, std::int64_t in,
                        std::int64_t tokens, float* sum) {
  share_product(out, in, 2 * tokens * in * out,
                [&](std::int64_t row, std::int64_t row_count, std::int64_t column,
                    std::int64_t column_count) {
                  const const_map gs(g + row, tokens, row_count, Eigen::OuterStride<>(out));
                  const const_map xs(x + column, tokens, column_count, Eigen::OuterStride<>(in));
                  map sums(sum + row * in + column, row_count, column_count,
                           Eigen::OuterStride<>(in));
                  sums.noalias() += gs.transpose() * xs;
                });
}

std::int64_t linear::out() const {
  if (pivoted()) return static_cast<std::int64_t>(order.size());
  return factored() ? u.rows() : dense.rows();
}

std::int64_t linear::in() const {
  if (pivoted()) return z.cols();
  return factored() ? v.cols() : dense.cols();
}

std::int64_t linear::parameters() const {
  auto sum = static_cast<std::int64_t>(bias.size());
  for (const weight_matrix* m : {&dense, &u, &v, &c, &z})
    sum += m->rows() * m->cols();
  return sum;
}

void linear::apply(const float* x, std::int64_t tokens, float* y, float_buffer* inner) const {
  float_buffer own;
  if (pivoted()) return apply_pivoted(*this, x, tokens, y, false, inner != nullptr ? *inner : own);
  std::fill(y, y + tokens * out(), 0.0f);
  apply_add(x, tokens, y, inner);
}

void linear::apply_add(const float* x, std::int64_t tokens, float* y, float_buffer* inner) const {
  float_buffer own;
  float_buffer& kept = inner != nullptr ? *inner : own;
  if (pivoted()) return apply_pivoted(*this, x, tokens, y, true, kept);
  if (!bias.empty())
    map(y, tokens, out(), Eigen::OuterStride<>(out())).rowwise() +=
        Eigen::Map<const Eigen::RowVectorXf>(bias.data(), out());
  if (!dense.empty()) multiply_add(x, tokens, dense, y);
  if (u.empty()) return;
  multiply(x, tokens, v, kept);
  multiply_add(kept.data(), tokens, u, y);
}

void linear::gather(const float* g, std::int64_t tokens, float* own, float* others) const {
  const std::int64_t r = rank();
  const std::int64_t width = out();
  const std::int64_t grain = std::max<std::int64_t>(1, 65'536 / width);
  parallel_for(tokens, grain, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t token = first; token < last; ++token) {
      const float* const from = g + token * width;
      for (std::int64_t i = 0; i < width; ++i) {
        const float value = from[order[static_cast<std::size_t>(i)]];
        (i < r ? own[token * r + i] : others[token * (width - r) + i - r]) = value;
      }
    }
  });
}

void linear::apply_back_add(const float* g, std::int64_t tokens, float* x,
                            float_buffer& inner) const {
  if (x != nullptr && !dense.empty()) multiply_add_back(g, tokens, dense, x);
  if (u.empty() && !pivoted()) return;
  inner.reserve(tokens * rank());
  if (pivoted()) {
    float_buffer others;
    others.reserve(tokens * c.rows());
    gather(g, tokens, inner.data(), others.data());
    multiply_add_back(others.data(), tokens, c, inner.data());
  } else {
    std::fill_n(inner.data(), tokens * rank(), 0.0f);
    multiply_add_back(g, tokens, u, inner.data());
  }
  if (x != nullptr) multiply_add_back(inner.data(), tokens, pivoted() ? z : v, x);
}

linear make_linear(weight_matrix dense, std::vector<float> bias) {
  if (dense.empty()) throw std::invalid_argument("linear: no matrix");
  require_bias(bias, dense.rows(), "a " + size_text(dense) + " matrix");
  linear result;
  result.dense = std::move(dense);
  result.bias = std::move(bias);
  return result;
}

linear make_linear(weight_matrix u, weight_matrix v, std::vector<float> bias) {
  if (u.empty() || u.cols() != v.rows())
    throw std::invalid_argument("linear: factors " + size_text(u) + " and " + size_text(v) +
                                " do not fit");
  require_bias(bias, u.rows(), "factors " + size_text(u) + " and " + size_text(v));
  linear result;
  result.u = std::move(u);
  result.v = std::move(v);
  result.bias = std::move(bias);
  return result;
}

linear make_corrected_linear(const linear& dense, const linear& pair) {
  if (dense.dense.empty() || pair.u.empty() || dense.out() != pair.out() || dense.in() != pair.in())
    throw std::invalid_argument("linear: a correction that does not fit");
  linear result = dense;
  result.u = pair.u;
  result.v = pair.v;
  return result;
}

linear make_pivoted_linear(weight_matrix c, weight_matrix z, std::vector<std::int32_t> order,
                           std::vector<float> bias) {
  const std::string parts = "C " + size_text(c) + " and Z " + size_text(z);
  if (c.empty() || c.cols() != z.rows())
    throw std::invalid_argument("linear: " + parts + " do not fit");
  if (static_cast<std::int64_t>(order.size()) != c.rows() + z.rows() || !is_permutation(order))
    throw std::invalid_argument("linear: the order of " + std::to_string(order.size()) +
                                " rows is no permutation for " + parts);
  require_bias(bias, c.rows() + z.rows(), parts);
  linear result;
  result.c = std::move(c);
  result.z = std::move(z);
  result.order = std::move(order);
  result.bias = std::move(bias);
  return result;
}

bool is_permutation(std::span<const std::int32_t> order) {
  std::vector<bool> seen(order.size(), false);
  for (const std::int32_t place : order) {
    if (place < 0 || std::cmp_greater_equal(place, seen.size())) return false;
    if (seen[static_cast<std::size_t>(place)]) return false;
    seen[static_cast<std::size_t>(place)] = true;
  }
  return true;
}

} // namespace ressvd_llm
