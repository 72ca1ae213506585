// SPDX-License-Identifier: Apache-2.0
#include "model/elementwise.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include <Eigen/Core>

#include "model/parallel.hpp"

namespace ressvd_llm {

namespace {

using array_map = Eigen::Map<Eigen::ArrayXf>;
using const_array_map = Eigen::Map<const Eigen::ArrayXf>;

// Σ f(i), in an order that does not depend on where operands lie: 16 sums of every 16th element,
// then their sum in float64.
template <class F>
double strided_sum(std::int64_t count, const F& f) {
  constexpr std::int64_t lanes = 16;
  std::array<float, lanes> sums{};
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes)
    for (std::int64_t lane = 0; lane < lanes; ++lane)
      sums[static_cast<std::size_t>(lane)] += f(i + lane);
  for (; i < count; ++i)
    sums[static_cast<std::size_t>(i % lanes)] += f(i);
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

double mean_square(const float* x, std::int64_t width) {
  return strided_sum(width, [x](std::int64_t i) { return x[i] * x[i]; }) /
         static_cast<double>(width);
}

double mean(const float* x, std::int64_t width) {
  return strided_sum(width, [x](std::int64_t i) { return x[i]; }) / static_cast<double>(width);
}

float inverse_root(double mean_square, double eps) {
  return static_cast<float>(1.0 / std::sqrt(mean_square + eps));
}

} // namespace

std::int64_t vector_grain(std::int64_t width) {
  return std::max<std::int64_t>(1, elementwise_grain / width);
}

void rms_norm(const std::vector<float>& scale, double eps, const float* x, std::int64_t count,
              float* y) {
  const auto width = static_cast<std::int64_t>(scale.size());
  const const_array_map weight(scale.data(), width);
  for (std::int64_t i = 0; i < count; ++i) {
    const const_array_map in(x + i * width, width);
    array_map(y + i * width, width) =
        in * inverse_root(mean_square(x + i * width, width), eps) * weight;
  }
}

void layer_norm(const norm_weights& norm, double eps, const float* x, std::int64_t count,
                float* y) {
  const auto width = static_cast<std::int64_t>(norm.scale.size());
  const const_array_map scale(norm.scale.data(), width);
  const const_array_map shift(norm.shift.data(), width);
  for (std::int64_t i = 0; i < count; ++i) {
    const const_array_map in(x + i * width, width);
    array_map out(y + i * width, width);
    out = in - static_cast<float>(mean(x + i * width, width));
    out = out * inverse_root(mean_square(y + i * width, width), eps) * scale + shift;
  }
}

void apply_norm(const norm_weights& norm, double eps, const float* x, std::int64_t count,
                float* y) {
  if (norm.shift.empty())
    rms_norm(norm.scale, eps, x, count, y);
  else
    layer_norm(norm, eps, x, count, y);
}

void measure_norms(bool centred, double eps, const float* x, std::int64_t count, std::int64_t width,
                   norm_statistics* statistics) {
  for (std::int64_t i = 0; i < count; ++i) {
    const float* row = x + i * width;
    const float middle = centred ? static_cast<float>(mean(row, width)) : 0.0f;
    const double square = strided_sum(
        width, [row, middle](std::int64_t j) { return (row[j] - middle) * (row[j] - middle); });
    statistics[i] = {middle, inverse_root(square / static_cast<double>(width), eps)};
  }
}

void norm_back(const std::vector<float>& scale, bool centred, const float* x,
               const norm_statistics* statistics, std::int64_t count, float* g) {
  const auto width = static_cast<std::int64_t>(scale.size());
  const const_array_map weight(scale.data(), width);
  for (std::int64_t i = 0; i < count; ++i) {
    const auto [middle, inverse] = statistics[i];
    const float* row = x + i * width;
    float* slope = g + i * width;
    array_map out(slope, width);
    out *= weight;
    // The norm is blind to a change along x, and to a constant if it centres.
    const double along =
        strided_sum(width,
                    [row, slope, m = middle](std::int64_t j) { return slope[j] * (row[j] - m); }) /
        static_cast<double>(width) * static_cast<double>(inverse * inverse);
    const float constant = centred ? static_cast<float>(mean(slope, width)) : 0.0f;
    out = inverse *
          (out - constant - (const_array_map(row, width) - middle) * static_cast<float>(along));
  }
}

void add_norm_gradients(const float* x, const norm_statistics* statistics, const float* g,
                        std::int64_t count, std::vector<double>& scale,
                        std::vector<double>& shift) {
  const auto width = static_cast<std::int64_t>(scale.size());
  const std::int64_t grain = elementwise_grain / std::max<std::int64_t>(count, 1) + 1;
  parallel_for(width, grain, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t i = 0; i < count; ++i) {
      const auto [middle, inverse] = statistics[i];
      for (std::int64_t j = first; j < last; ++j) {
        const float slope = g[i * width + j];
        const auto at = static_cast<std::size_t>(j);
        scale[at] += static_cast<double>(slope * (x[i * width + j] - middle) * inverse);
        if (!shift.empty()) shift[at] += static_cast<double>(slope);
      }
    }
  });
}

void activate(activation_kind kind, const float* factor, float* x, std::int64_t count) {
  array_map values(x, count);
  switch (kind) {
    case activation_kind::silu:
      values = values / (1.0f + (-values).exp());
      break;
    case activation_kind::relu:
      // Written so that a NaN stays one.
      values = (values < 0.0f).select(0.0f, values);
      break;
    case activation_kind::gelu:
      for (std::int64_t i = 0; i < count; ++i)
        x[i] = 0.5f * x[i] * std::erfc(-x[i] * 0.70710678f);
      break;
    case activation_kind::gelu_tanh:
      values = 0.5f * values * (1.0f + (0.79788456f * (values + 0.044715f * values.cube())).tanh());
      break;
  }
  if (factor != nullptr) values *= const_array_map(factor, count);
}

void activate_back(activation_kind kind, const float* x, const float* factor, float* g,
                   float* factor_gradient, std::int64_t count) {
  const const_array_map in(x, count);
  array_map slope(g, count);
  if (factor != nullptr) {
    std::copy_n(x, count, factor_gradient);
    activate(kind, g, factor_gradient, count);
    slope *= const_array_map(factor, count);
  }
  switch (kind) {
    case activation_kind::silu: {
      const auto sigmoid = 1.0f / (1.0f + (-in).exp());
      slope *= sigmoid * (1.0f + in * (1.0f - sigmoid));
      break;
    }
    case activation_kind::relu:
      slope = (in > 0.0f).select(slope, 0.0f);
      break;
    case activation_kind::gelu:
      for (std::int64_t i = 0; i < count; ++i)
        g[i] *= 0.5f * std::erfc(-x[i] * 0.70710678f) +
                x[i] * 0.39894228f * std::exp(-0.5f * x[i] * x[i]);
      break;
    case activation_kind::gelu_tanh:
      for (std::int64_t i = 0; i < count; ++i) {
        const float square = x[i] * x[i];
        const float t = std::tanh(0.79788456f * x[i] * (1.0f + 0.044715f * square));
        g[i] *= 0.5f * (1.0f + t) +
                0.5f * x[i] * (1.0f - t * t) * 0.79788456f * (1.0f + 0.134145f * square);
      }
      break;
  }
}

} // namespace ressvd_llm
