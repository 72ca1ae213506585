// SPDX-License-Identifier: Apache-2.0
//
// The device code of the forward pass, text behind that of the library's CUDA backend: all but the
// matrix products. Matrices are row-major, a row a token. S is the type in which products read
// their factors; all else is float. Blocks that work row by row take one row at a time. Sums are
// taken in a fixed order.
#pragma once

namespace ressvd_llm {

inline constexpr const char* forward_kernels = R"kernels(
namespace ressvd_llm {

using ressvd::index;
using ressvd::stored;
using ressvd::value;
using ressvd::for_each;

// Leaves the smallest of the places where something was not finite.
inline void note(float x, unsigned long long place, unsigned long long* first_bad) {
  if (!(fabsf(x) <= 3.402823466e+38f)) atomicMin(first_bad, place);
}

// op over the values of a block, for all its threads, which are a power of two.
template <class T, class Op> inline T over_block(T mine, Op op) {
  __shared__ T values[256];
  values[threadIdx.x] = mine;
  __syncthreads();
  for (unsigned step = blockDim.x / 2; step > 0; step /= 2) {
    if (threadIdx.x < step)
      values[threadIdx.x] = op(values[threadIdx.x], values[threadIdx.x + step]);
    __syncthreads();
  }
  const T result = values[0];
  __syncthreads(); // before the next one writes where this one is read
  return result;
}
template <class T> inline T sum_over_block(T mine) {
  return over_block(mine, [](T a, T b) { return a + b; });
}
inline float max_over_block(float mine) {
  return over_block(mine, [](float a, float b) { return a > b ? a : b; });
}

// x(t) = scale * table(ids[t]) (+ positions(offset + t % window)).
template <class S>
__global__ void embed(const S* table, const int* ids, float scale, const S* positions, index offset,
                      index window, index width, index tokens, float* x) {
  for_each(width, tokens, [=](index i, index t) {
    float v = scale * value(table[ids[t] * width + i]);
    if (positions != nullptr) v += value(positions[(offset + t % window) * width + i]);
    x[t * width + i] = v;
  });
}

// y = scale * (x - mean) / deviation + shift for layer norms, which have a shift; RMS norms subtract
// no mean. y may be x. added: y += that.
template <class S, bool added>
__global__ void norm(const float* x, const float* scale, const float* shift, float eps, index width,
                     index rows, S* y, unsigned long long place, unsigned long long* first_bad) {
  for (index t = blockIdx.x; t < rows; t += gridDim.x) {
    const float* row = x + t * width;
    float mean = 0;
    if (shift != nullptr) {
      for (index i = threadIdx.x; i < width; i += blockDim.x) mean += row[i];
      mean = sum_over_block(mean) / (float)width;
    }
    float squares = 0;
    for (index i = threadIdx.x; i < width; i += blockDim.x) {
      note(row[i], place, first_bad);
      squares += (row[i] - mean) * (row[i] - mean);
    }
    const float inverse = 1.0f / sqrtf(sum_over_block(squares) / (float)width + eps);
    for (index i = threadIdx.x; i < width; i += blockDim.x) {
      float v = (row[i] - mean) * inverse * scale[i];
      if (shift != nullptr) v += shift[i];
      if (added) v += value(y[t * width + i]);
      y[t * width + i] = stored<S>::of(v);
    }
  }
}

template <class T>
__global__ void add_bias(const T* bias, index width, index rows, T* y) {
  for_each(width, rows, [=](index i, index t) { y[t * width + i] += bias[i]; });
}

template <class S>
__global__ void to_stored(const float* x, index width, index rows, S* y, unsigned long long place,
                          unsigned long long* first_bad) {
  for_each(width, rows, [=](index i, index t) {
    const float v = x[t * width + i];
    note(v, place, first_bad);
    y[t * width + i] = stored<S>::of(v);
  });
}

// Elements j and j + half of each head turn by the angle of pair j at the token's position.
template <class S>
__global__ void rotate(const float* x, const float* cosines, const float* sines, index first,
                       index window, index half, index heads, index tokens, S* y,
                       unsigned long long place, unsigned long long* first_bad) {
  for_each(half, heads * tokens, [=](index j, index head) {
    const index turn = (first + head / heads % window) * half + j;
    const index at = head * 2 * half + j;
    const float a = x[at], b = x[at + half];
    note(a, place, first_bad);
    note(b, place, first_bad);
    y[at] = stored<S>::of(a * cosines[turn] - b * sines[turn]);
    y[at + half] = stored<S>::of(b * cosines[turn] + a * sines[turn]);
  });
}

// weights = softmax(cap(scale * scores)) row by row, zero where a query sees nothing; `rows` queries
// of each of `count` heads, the first at position `first`; the first column is the key at position
// `first_key`. seen: keys that a query sees at most, 0 for all before it. Overwrites the scores, and
// weights may lie in their place.
template <class S>
__global__ void softmax(float* scores, index rows, index count, index ld, index first,
                        index first_key, index seen, float scale, float cap, S* weights) {
  for (index r = blockIdx.x; r < rows * count; r += gridDim.x) {
    const index position = first + r % rows;
    index begin = seen > 0 ? position - seen + 1 - first_key : 0;
    if (begin < 0) begin = 0;
    const index end = position + 1 - first_key;
    float* row = scores + r * ld;
    float peak = -3.402823466e+38f;
    for (index k = begin + threadIdx.x; k < end; k += blockDim.x) {
      const float v = cap > 0 ? cap * tanhf(row[k] * (scale / cap)) : scale * row[k];
      row[k] = v;
      peak = v > peak ? v : peak;
    }
    peak = max_over_block(peak);
    float sum = 0;
    for (index k = begin + threadIdx.x; k < end; k += blockDim.x) {
      row[k] = expf(row[k] - peak);
      sum += row[k];
    }
    const float inverse = 1.0f / sum_over_block(sum);
    for (index k = threadIdx.x; k < ld; k += blockDim.x) {
      weights[r * ld + k] = stored<S>::of(k >= begin && k < end ? inverse * row[k] : 0.0f);
    }
  }
}

// kind: 0 silu, 1 relu, 2 gelu, 3 gelu_tanh.
template <int kind> inline float activated(float x) {
  if (kind == 0) return x / (1.0f + expf(-x));
  if (kind == 1) return x < 0.0f ? 0.0f : x;
  if (kind == 2) return 0.5f * x * erfcf(-0.70710678f * x);
  return 0.5f * x * (1.0f + tanhf(0.79788456f * x * (1.0f + 0.044715f * x * x)));
}

// y = f(gate) * up, or f(up) without a gate.
template <class S, int kind>
__global__ void activate(const float* gate, unsigned long long gate_place, const float* up,
                         unsigned long long up_place, index width, index rows, S* y,
                         unsigned long long* first_bad) {
  for_each(width, rows, [=](index i, index t) {
    const index at = t * width + i;
    const float u = up[at];
    note(u, up_place, first_bad);
    if (gate == nullptr) {
      y[at] = stored<S>::of(activated<kind>(u));
    } else {
      const float g = gate[at];
      note(g, gate_place, first_bad);
      y[at] = stored<S>::of(activated<kind>(g) * u);
    }
  });
}

// Row i of a pivoted matrix's output is element places[i] of [own; others], `rank` of them own.
template <bool added>
__global__ void merge_rows(const float* own, const float* others, const int* places, index rank,
                           index width, index tokens, float* y) {
  for_each(width, tokens, [=](index i, index t) {
    const index p = places[i];
    const float v = p < rank ? own[t * rank + p] : others[t * (width - rank) + p - rank];
    y[t * width + i] = added ? y[t * width + i] + v : v;
  });
}

template <class T> __global__ void cap_values(T cap, index count, T* x) {
  for_each(count, 1, [=](index i, index) { x[i] = cap * tanhf(x[i] / cap); });
}

// log(sum of exp(row)) - peak, and the peak.
inline double log_sum(const float* row, index vocab, unsigned long long place,
                      unsigned long long* first_bad, float& peak) {
  peak = -3.402823466e+38f;
  for (index i = threadIdx.x; i < vocab; i += blockDim.x) {
    note(row[i], place, first_bad);
    peak = row[i] > peak ? row[i] : peak;
  }
  peak = max_over_block(peak);
  double sum = 0;
  for (index i = threadIdx.x; i < vocab; i += blockDim.x) sum += expf(row[i] - peak);
  return log(sum_over_block(sum));
}

template <class T>
__global__ void next_token_losses(const T* logits, const int* targets, index vocab, index rows,
                                  double* losses, unsigned long long place,
                                  unsigned long long* first_bad) {
  for (index t = blockIdx.x; t < rows; t += gridDim.x) {
    const T* row = logits + t * vocab;
    float peak;
    const double sum = log_sum(row, vocab, place, first_bad, peak);
    if (threadIdx.x == 0) losses[t] = sum - ((double)row[targets[t]] - (double)peak);
  }
}

// Of softmax(p) from softmax(q).
template <class T>
__global__ void kl_divergences(const T* p, const T* q, index vocab, index rows,
                               double* divergences, unsigned long long place,
                               unsigned long long* first_bad) {
  for (index t = blockIdx.x; t < rows; t += gridDim.x) {
    const T* ps = p + t * vocab;
    const T* qs = q + t * vocab;
    float p_peak, q_peak;
    const double p_sum = log_sum(ps, vocab, place, first_bad, p_peak);
    const double q_sum = log_sum(qs, vocab, place, first_bad, q_peak);
    double divergence = 0;
    for (index i = threadIdx.x; i < vocab; i += blockDim.x) {
      const double log_p = (double)ps[i] - (double)p_peak - p_sum;
      const double log_q = (double)qs[i] - (double)q_peak - q_sum;
      divergence += expf((float)log_p) * (log_p - log_q);
    }
    divergence = sum_over_block(divergence);
    if (threadIdx.x == 0) divergences[t] = divergence > 0 ? divergence : 0;
  }
}

// sums[2 * block] = the block's share of the sum of (a - b)^2, sums[2 * block + 1] of a^2.
template <class T>
__global__ void compare(const T* a, const T* b, index count, double* sums) {
  double difference = 0, reference = 0;
  for (index i = blockIdx.x * (index)blockDim.x + threadIdx.x; i < count;
       i += gridDim.x * (index)blockDim.x) {
    const double d = (double)a[i] - (double)b[i];
    difference += d * d;
    reference += (double)a[i] * (double)a[i];
  }
  difference = sum_over_block(difference);
  reference = sum_over_block(reference);
  if (threadIdx.x == 0) {
    sums[2 * blockIdx.x] = difference;
    sums[2 * blockIdx.x + 1] = reference;
  }
}

} // namespace ressvd_llm
)kernels";

} // namespace ressvd_llm
