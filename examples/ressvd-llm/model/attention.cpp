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

// Some consecutive queries of a head and the keys that any of them can see.
struct query_block {
  query_block(const attention_head& of, std::int64_t at)
      : head(of),
        start(at),
        rows(std::min(block_queries, of.queries - at)),
        key_begin(first_key(of.first + at)),
        keys(of.first + at + rows - key_begin),
        stride((keys + row_alignment - 1) / row_alignment * row_alignment),
        scale(of.scale > 0 ? static_cast<float>(of.scale)
                           : 1.0f / std::sqrt(static_cast<float>(of.head_dim))),
        cap(static_cast<float>(of.cap)) {}

  std::int64_t first_key(std::int64_t position) const {
    return head.sliding_window == 0 ? 0
                                    : std::max<std::int64_t>(0, position - head.sliding_window + 1);
  }

  std::int64_t size() const { return rows * stride; }

  // The rows of K or V that the block reads.
  const_map keys_of(const float* values) const {
    return {values + key_begin * head.kv_stride, keys, head.head_dim,
            Eigen::OuterStride<>(head.kv_stride)};
  }

  // softmax(cap(scale·QKᵀ)), rows × keys, in size() aligned floats. `slopes`, where given, gets the
  // derivatives of the capped scores by QKᵀ.
  map weights(float* memory, float* slopes = nullptr) const {
    map scores(memory, rows, keys, Eigen::OuterStride<>(stride));
    const const_map q(head.q + start * head.q_stride, rows, head.head_dim,
                      Eigen::OuterStride<>(head.q_stride));
    scores.noalias() = q * keys_of(head.k).transpose();
    float factor = scale;
    if (cap > 0) {
      factor = 1.0f;
      auto capped = scores.array();
      capped = (capped * (scale / cap)).tanh();
      if (slopes != nullptr) {
        map(slopes, rows, keys, Eigen::OuterStride<>(stride)).array() =
            scale * (1.0f - capped.square());
      }
      capped *= cap;
    }
    for (std::int64_t i = 0; i < rows; ++i) {
      const std::int64_t position = head.first + start + i;
      const std::int64_t begin = first_key(position) - key_begin;
      const std::int64_t end = position + 1 - key_begin;
      Eigen::Map<Eigen::ArrayXf, Eigen::Aligned64> row(memory + i * stride, stride);
      const float peak = row.segment(begin, end - begin).maxCoeff();
      // What the query does not see must not overflow; afterwards it weighs nothing.
      row.head(begin) = peak;
      row.tail(stride - end) = peak;
      row = ((row - peak) * factor).exp();
      row.head(begin) = 0.0f;
      row.tail(stride - end) = 0.0f;
      row *= 1.0f / row.sum();
    }
    return scores;
  }

  const attention_head& head;
  std::int64_t start;
  std::int64_t rows;
  std::int64_t key_begin;
  std::int64_t keys;
  // Rows of whole aligned packets: the exponentials run without scalar ends.
  std::int64_t stride;
  float scale;
  float cap;
};

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
  turn(row, heads, position, 1.0f);
}

void rope_table::rotate_back(float* row, std::int64_t heads, std::int64_t position) const {
  turn(row, heads, position, -1.0f);
}

void rope_table::turn(float* row, std::int64_t heads, std::int64_t position,
                      float direction) const {
  const float* cosine = cosines_.data() + position * half_;
  const float* sine = sines_.data() + position * half_;
  for (std::int64_t h = 0; h < heads; ++h) {
    float* first = row + h * 2 * half_;
    float* second = first + half_;
    for (std::int64_t j = 0; j < half_; ++j) {
      const float a = first[j];
      const float b = second[j];
      const float s = direction * sine[j];
      first[j] = a * cosine[j] - b * s;
      second[j] = b * cosine[j] + a * s;
    }
  }
}

void attend(const attention_head& head, float_buffer& scratch) {
  for (std::int64_t start = 0; start < head.queries; start += block_queries) {
    const query_block block(head, start);
    scratch.reserve(block.size());
    const map weights = block.weights(scratch.data());
    map(head.out + start * head.out_stride, block.rows, head.head_dim,
        Eigen::OuterStride<>(head.out_stride))
        .noalias() = weights * block.keys_of(head.v);
  }
}

void attend_back(const attention_head& head, const attention_gradient& gradient,
                 float_buffer& scratch) {
  const Eigen::OuterStride<> q_stride(head.q_stride);
  const Eigen::OuterStride<> kv_stride(head.kv_stride);
  for (std::int64_t start = 0; start < head.queries; start += block_queries) {
    const query_block block(head, start);
    scratch.reserve((block.cap > 0 ? 3 : 2) * block.size());
    map capped(scratch.data() + (block.cap > 0 ? 2 : 0) * block.size(), block.rows, block.keys,
               Eigen::OuterStride<>(block.stride));
    map weights = block.weights(scratch.data(), capped.data());
    map slopes(scratch.data() + block.size(), block.rows, block.keys,
               Eigen::OuterStride<>(block.stride));
    const const_map out(gradient.out + start * head.out_stride, block.rows, head.head_dim,
                        Eigen::OuterStride<>(head.out_stride));
    const const_map q(head.q + start * head.q_stride, block.rows, head.head_dim, q_stride);
    const std::int64_t first = block.key_begin * head.kv_stride;
    map(gradient.v + first, block.keys, head.head_dim, kv_stride).noalias() +=
        weights.transpose() * out;
    // Of softmax: p∘(dp − Σp·dp); zero where the query sees nothing.
    slopes.noalias() = out * block.keys_of(head.v).transpose();
    for (std::int64_t i = 0; i < block.rows; ++i) {
      const auto p = weights.row(i).array();
      auto slope = slopes.row(i).array();
      slope = p * (slope - (p * slope).sum());
      if (block.cap > 0) {
        slope *= capped.row(i).array();
      } else {
        slope *= block.scale;
      }
    }
    map(gradient.q + start * head.q_stride, block.rows, head.head_dim, q_stride).noalias() =
        slopes * block.keys_of(head.k);
    map(gradient.k + first, block.keys, head.head_dim, kv_stride).noalias() +=
        slopes.transpose() * q;
  }
}

} // namespace ressvd_llm
