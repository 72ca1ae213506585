// SPDX-License-Identifier: Apache-2.0
//
// Norms and activations, and their backward passes. Results do not depend on where the vectors lie
// in memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "io/config.hpp"
#include "model/buffer.hpp"
#include "model/layer.hpp"
#include "model/parallel.hpp"

namespace ressvd_llm {

// Elements of an element-wise operation worth handing to a thread.
inline constexpr std::int64_t elementwise_grain = 16'384;

// The same in vectors of this width.
std::int64_t vector_grain(std::int64_t width);

// Calls body(first, count) for pieces of [0, count) that begin at aligned elements of a
// float_buffer, from several threads.
template <class Body>
void for_each_aligned(std::int64_t count, const Body& body) {
  constexpr std::int64_t aligned = float_buffer::alignment / sizeof(float);
  parallel_for((count + aligned - 1) / aligned, elementwise_grain / aligned,
               [&](std::int64_t begin, std::int64_t end) {
                 body(begin * aligned, std::min(end * aligned, count) - begin * aligned);
               });
}

// y = scale ∘ x / rms(x), over each of `count` consecutive vectors; y may be x.
void rms_norm(const std::vector<float>& scale, double eps, const float* x, std::int64_t count,
              float* y);

// y = scale ∘ (x − mean(x)) / √var(x) + shift; y may be x.
void layer_norm(const norm_weights& norm, double eps, const float* x, std::int64_t count, float* y);

// Whichever of the two the weights are for.
void apply_norm(const norm_weights& norm, double eps, const float* x, std::int64_t count, float* y);

// Of a vector x: what its norm subtracts (0 for RMS norms) and what it multiplies by.
struct norm_statistics {
  float mean = 0;
  float inverse = 0;
};

// The statistics of `count` consecutive vectors; centred: for layer norms.
void measure_norms(bool centred, double eps, const float* x, std::int64_t count, std::int64_t width,
                   norm_statistics* statistics);

// From the gradient g at a norm's output, in place, the one at its input x.
void norm_back(const std::vector<float>& scale, bool centred, const float* x,
               const norm_statistics* statistics, std::int64_t count, float* g);

// Adds the gradients of a norm's scale and, unless it is empty, of its shift, from the gradient g
// at its output; shared among threads.
void add_norm_gradients(const float* x, const norm_statistics* statistics, const float* g,
                        std::int64_t count, std::vector<double>& scale, std::vector<double>& shift);

// x = f(x), times factor where there is one.
void activate(activation_kind kind, const float* factor, float* x, std::int64_t count);

// From the gradient g at f(x), or f(x)∘factor, in place, the one at x; `factor_gradient` gets the
// one at the factor, where there is one.
void activate_back(activation_kind kind, const float* x, const float* factor, float* g,
                   float* factor_gradient, std::int64_t count);

} // namespace ressvd_llm
