// SPDX-License-Identifier: Apache-2.0
#include "model/attention.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

#include <Eigen/Core>

namespace ressvd_llm {

namespace {

using row_major = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using const_map = Eigen::Map<const row_major, 0, Eigen::OuterStride<>>;
using map = Eigen::Map<row_major, 0, Eigen::OuterStride<>>;

// Queries of one block: wide enough for the products to run at full speed, narrow enough that few
// scores above the diagonal are computed for nothing.
constexpr std::int64_t block_queries = 64;

constexpr std::int64_t row_alignment = float_buffer::alignment / sizeof(float);

double plain_frequency(const model_config& config, std::int64_t j) {
  return std::pow(config.rope.theta,
                  -2.0 * static_cast<double>(j) / static_cast<double>(config.head_dim));
}

// Of pair j of a head.
double scaled_frequency(const rope_config& rope, std::int64_t j, double frequency) {
  if (rope.scaling == rope_scaling::factors)
    return frequency / rope.factors[static_cast<std::size_t>(j)];
  if (rope.scaling == rope_scaling::linear) return frequency / rope.factor;
  if (rope.scaling == rope_scaling::none) return frequency;
  const auto context = static_cast<double>(rope.original_max_positions);
  const double wavelength = 2.0 * std::numbers::pi / frequency;
  if (wavelength < context / rope.high_freq_factor) return frequency;
  if (wavelength > context / rope.low_freq_factor) return frequency / rope.factor;
  const double blend = (context / wavelength - rope.low_freq_factor) /
                       (rope.high_freq_factor - rope.low_freq_factor);
  return (1.0 - blend) * frequency / rope.factor + blend * frequency;
}

} // namespace

rope_table::rope_table(const model_config& config) : half_(config.head_dim / 2) {
  for (std::int64_t j = 0; j < half_; ++j) {
    frequencies_.push_back(
        static_cast<float>(scaled_frequency(config.rope, j, plain_frequency(config, j))));
  }
}

std::vector<float> rope_factors(const model_config& config) {
  std::vector<float> factors;
  for (std::int64_t j = 0; j < config.head_dim / 2; ++j) {
    const double frequency = plain_frequency(config, j);
    factors.push_back(static_cast<float>(frequency / scaled_frequency(config.rope, j, frequency)));
  }
  return factors;
}

void rope_table::reserve(std::int64_t count) {
  if (count <= reserved_) return;
  cosines_.resize(static_cast<std::size_t>(count * half_));
  sines_.resize(cosines_.size());
  for (std::int64_t p = reserved_; p < count; ++p)
    for (std::int64_t j = 0; j < half_; ++j) {
      const float angle = static_cast<float>(p) * frequencies_[static_cast<std::size_t>(j)];
      const auto at = static_cast<std::size_t>(p * half_ + j);
      cosines_[at] = static_cast<float>(std::cos(static_cast<double>(angle)));
      sines_[at] = static_cast<float>(std::sin(static_cast<double>(angle)));
    }
  reserved_ = count;
}

void rope_table::rotate(float* row, std::int64_t heads, std::int64_t position) const {
  const float* cosine = cosines_.data() + position * half_;
  const float* sine = sines_.data() + position * half_;
  for (std::int64_t h = 0; h < heads; ++h) {
    float* first = row + h * 2 * half_;
    float* second = first + half_;
    for (std::int64_t j = 0; j < half_; ++j) {
      const float a = first[j];
      const float b = second[j];
      first[j] = a * cosine[j] - b * sine[j];
      second[j] = b * cosine[j] + a * sine[j];
    }
  }
}

void attend(const attention_head& head, float_buffer& scratch) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(head.head_dim));
  const auto first_key = [&](std::int64_t position) {
    return head.sliding_window == 0 ? 0
                                    : std::max<std::int64_t>(0, position - head.sliding_window + 1);
  };
  for (std::int64_t start = 0; start < head.queries; start += block_queries) {
    const std::int64_t rows = std::min(block_queries, head.queries - start);
    const std::int64_t key_begin = first_key(head.first + start);
    const std::int64_t keys = head.first + start + rows - key_begin;
    // Rows of whole aligned packets: the exponentials run without scalar ends.
    const std::int64_t stride = (keys + row_alignment - 1) / row_alignment * row_alignment;
    scratch.reserve(rows * stride);
    float* block = scratch.data();

    const const_map q(head.q + start * head.q_stride, rows, head.head_dim,
                      Eigen::OuterStride<>(head.q_stride));
    const const_map k(head.k + key_begin * head.kv_stride, keys, head.head_dim,
                      Eigen::OuterStride<>(head.kv_stride));
    const const_map v(head.v + key_begin * head.kv_stride, keys, head.head_dim,
                      Eigen::OuterStride<>(head.kv_stride));
    map scores(block, rows, keys, Eigen::OuterStride<>(stride));
    map out(head.out + start * head.out_stride, rows, head.head_dim,
            Eigen::OuterStride<>(head.out_stride));

    scores.noalias() = q * k.transpose();
    for (std::int64_t i = 0; i < rows; ++i) {
      const std::int64_t position = head.first + start + i;
      const std::int64_t begin = first_key(position) - key_begin;
      const std::int64_t end = position + 1 - key_begin;
      Eigen::Map<Eigen::ArrayXf, Eigen::Aligned64> row(block + i * stride, stride);
      const float peak = row.segment(begin, end - begin).maxCoeff();
      // What the query does not see must not overflow; afterwards it weighs nothing.
      row.head(begin) = peak;
      row.tail(stride - end) = peak;
      row = ((row - peak) * scale).exp();
      row.head(begin) = 0.0f;
      row.tail(stride - end) = 0.0f;
      row *= 1.0f / row.sum();
    }
    out.noalias() = scores * v;
  }
}

} // namespace ressvd_llm
