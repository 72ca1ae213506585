// SPDX-License-Identifier: Apache-2.0
#include "model/mixture.hpp"

#include <algorithm>
#include <cmath>
#include <span>

#include <Eigen/Core>

#include "model/elementwise.hpp"
#include "model/parallel.hpp"

namespace ressvd_llm {

namespace {

using row_map = Eigen::Map<Eigen::ArrayXf>;
using const_row_map = Eigen::Map<const Eigen::ArrayXf>;

void softmax(float* logits, std::int64_t count) {
  row_map row(logits, count);
  row = (row - row.maxCoeff()).exp();
  row *= 1.0f / row.sum();
}

// Numbers of the largest of `count` values, ascending. A value that is no number counts as the
// smallest.
void choose_largest(const float* values, std::int64_t count, std::span<std::int64_t> chosen) {
  std::vector<bool> taken(static_cast<std::size_t>(count), false);
  for (std::int64_t& choice : chosen) {
    choice = -1;
    for (std::int64_t i = 0; i < count; ++i) {
      if (taken[static_cast<std::size_t>(i)]) continue;
      if (choice < 0 || values[i] > values[choice] || std::isnan(values[choice])) choice = i;
    }
    taken[static_cast<std::size_t>(choice)] = true;
  }
  std::ranges::sort(chosen);
}

} // namespace

void route(const model_config& config, const weight_matrix& router, const float* x,
           std::int64_t tokens, routing& result) {
  const std::int64_t experts = config.experts;
  const std::int64_t per_token = config.experts_per_token;
  const auto rows = static_cast<std::size_t>(tokens * per_token);
  result.per_token = per_token;
  result.begin.assign(static_cast<std::size_t>(experts + 1), 0);
  result.token.resize(rows);
  result.weight.resize(rows);
  result.rows.resize(rows);
  result.probabilities.reserve(tokens * experts);
  float* const probabilities = result.probabilities.data();
  std::fill_n(probabilities, tokens * experts, 0.0f);
  multiply_add(x, tokens, router, probabilities);
  std::vector<std::int64_t> chosen(rows);
  parallel_for(tokens, vector_grain(experts * per_token),
               [&](std::int64_t first, std::int64_t last) {
                 for (std::int64_t t = first; t < last; ++t) {
                   float* const row = probabilities + t * experts;
                   softmax(row, experts);
                   choose_largest(row, experts,
                                  std::span(chosen).subspan(static_cast<std::size_t>(t * per_token),
                                                            static_cast<std::size_t>(per_token)));
                 }
               });
  for (const std::int64_t expert : chosen)
    ++result.begin[static_cast<std::size_t>(expert + 1)];
  for (std::size_t e = 1; e < result.begin.size(); ++e)
    result.begin[e] += result.begin[e - 1];
  std::vector<std::int64_t> next = result.begin;
  for (std::int64_t t = 0; t < tokens; ++t) {
    const float* const row = probabilities + t * experts;
    const auto at = static_cast<std::size_t>(t * per_token);
    const auto mine = std::span(chosen).subspan(at, static_cast<std::size_t>(per_token));
    float sum = 0;
    for (const std::int64_t expert : mine)
      sum += row[expert];
    const float scale = config.normalised_experts ? 1.0f / sum : 1.0f;
    for (std::size_t j = 0; j < mine.size(); ++j) {
      const std::int64_t place = next[static_cast<std::size_t>(mine[j])]++;
      result.rows[at + j] = place;
      result.token[static_cast<std::size_t>(place)] = t;
      result.weight[static_cast<std::size_t>(place)] = scale * row[mine[j]];
    }
  }
}

void gather_rows(const routing& routes, const float* x, std::int64_t width, float* rows) {
  parallel_for(routes.row_count(), vector_grain(width), [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t row = first; row < last; ++row)
      std::copy_n(x + routes.token[static_cast<std::size_t>(row)] * width, width,
                  rows + row * width);
  });
}

void add_rows(const routing& routes, const float* rows, std::int64_t width, bool weighted,
              float* y) {
  const std::int64_t tokens = routes.row_count() / routes.per_token;
  parallel_for(
      tokens, vector_grain(routes.per_token * width), [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t t = first; t < last; ++t) {
          row_map sum(y + t * width, width);
          for (std::int64_t j = t * routes.per_token; j < (t + 1) * routes.per_token; ++j) {
            const std::int64_t row = routes.rows[static_cast<std::size_t>(j)];
            const float weight = weighted ? routes.weight[static_cast<std::size_t>(row)] : 1.0f;
            sum += weight * const_row_map(rows + row * width, width);
          }
        }
      });
}

void add_rows_back(const routing& routes, const float* rows, const float* g, std::int64_t width,
                   float* row_gradient, float* weight_gradient) {
  parallel_for(routes.row_count(), vector_grain(width), [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t row = first; row < last; ++row) {
      const auto at = static_cast<std::size_t>(row);
      const const_row_map sum(g + routes.token[at] * width, width);
      weight_gradient[row] = (sum * const_row_map(rows + row * width, width)).sum();
      row_map(row_gradient + row * width, width) = routes.weight[at] * sum;
    }
  });
}

void route_back(const model_config& config, const routing& routes, const weight_matrix& router,
                const float* weight_gradient, float_buffer& scratch, float* x) {
  const std::int64_t experts = routes.experts();
  const std::int64_t per_token = routes.per_token;
  const std::int64_t tokens = routes.row_count() / per_token;
  scratch.reserve(tokens * experts);
  float* const slopes = scratch.data(); // of the probabilities, then of the logits
  std::fill_n(slopes, tokens * experts, 0.0f);
  for (std::int64_t e = 0; e < experts; ++e)
    for (std::int64_t row = routes.first(e); row < routes.first(e + 1); ++row)
      slopes[routes.token[static_cast<std::size_t>(row)] * experts + e] = weight_gradient[row];
  parallel_for(tokens, vector_grain(experts), [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t t = first; t < last; ++t) {
      row_map slope(slopes + t * experts, experts);
      const const_row_map p(routes.probabilities.data() + t * experts, experts);
      if (!config.normalised_experts) {
        slope = p * (slope - (p * slope).sum());
        continue;
      }
      // A softmax over the chosen experts alone.
      float mean = 0;
      for (std::int64_t j = t * per_token; j < (t + 1) * per_token; ++j) {
        const std::int64_t row = routes.rows[static_cast<std::size_t>(j)];
        mean += routes.weight[static_cast<std::size_t>(row)] * weight_gradient[row];
      }
      slope = 0.0f;
      for (std::int64_t e = 0, j = t * per_token; j < (t + 1) * per_token; ++j) {
        const std::int64_t row = routes.rows[static_cast<std::size_t>(j)];
        while (row >= routes.first(e + 1))
          ++e;
        slope[e] = routes.weight[static_cast<std::size_t>(row)] * (weight_gradient[row] - mean);
      }
    }
  });
  multiply_add_back(slopes, tokens, router, x);
}

} // namespace ressvd_llm
