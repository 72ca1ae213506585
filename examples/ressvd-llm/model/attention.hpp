// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "io/config.hpp"
#include "model/buffer.hpp"

namespace ressvd_llm {

// Cosines and sines of rotary position embeddings: pair j of a head (elements j and j + head_dim/2)
// at position p turns by p·f_j, f_j = theta^(−2j/head_dim) and then scaled as the config says
// (Llama 3: wavelengths beyond the original context are stretched by `factor`, those far below
// stay, with a linear blend between; or each by a factor of its own). Angles are rounded to
// float32, as trained models saw them.
class rope_table {
 public:
  explicit rope_table(const model_config& config);

  // Makes positions [0, count) available.
  void reserve(std::int64_t count);

  // Of the reserved positions: position × head_dim/2.
  const std::vector<float>& cosines() const { return cosines_; }
  const std::vector<float>& sines() const { return sines_; }

  // Rotates `heads` heads at row (heads·head_dim floats) to a position below the reserved count.
  void rotate(float* row, std::int64_t heads, std::int64_t position) const;
  // The inverse, and so the transpose: gradients of rotated heads become those of the heads.
  void rotate_back(float* row, std::int64_t heads, std::int64_t position) const;

 private:
  void turn(float* row, std::int64_t heads, std::int64_t position, float direction) const;

  std::int64_t half_ = 0;
  std::int64_t reserved_ = 0;
  std::vector<float> frequencies_; // half_
  std::vector<float> cosines_;     // reserved_ × half_
  std::vector<float> sines_;
};

// What the scaling divides each frequency of a head by.
std::vector<float> rope_factors(const model_config& config);

// One head's causal attention over one sequence, out = softmax(cap(scale·QKᵀ))V. All matrices are
// row-major with head_dim columns. Query i stands at position first + i and sees the keys at
// positions [position − sliding_window + 1, position], from 0 when there is no sliding window.
struct attention_head {
  std::int64_t head_dim = 0;
  std::int64_t queries = 0;
  std::int64_t first = 0;          // position of the first query
  std::int64_t sliding_window = 0; // 0: none
  double scale = 0;                // 0: 1/√head_dim
  double cap = 0;                  // c of the soft cap c·tanh(score/c); 0: none
  const float* q = nullptr;        // queries × head_dim
  std::int64_t q_stride = 0;
  const float* k = nullptr; // positions [0, first + queries) × head_dim
  const float* v = nullptr;
  std::int64_t kv_stride = 0;
  float* out = nullptr; // queries × head_dim, apart from q
  std::int64_t out_stride = 0;
};

// Works through blocks of queries against the keys they can see: 4·queries·keys·head_dim flops and
// one exponential a score; scratch grows to one block of scores.
void attend(const attention_head& head, float_buffer& scratch);

// Gradients of one head's attention, laid out and strided like the head's q, k, v and out.
struct attention_gradient {
  const float* out = nullptr; // given
  float* q = nullptr;         // written; may be `out`
  float* k = nullptr;         // added to, as query heads may share them
  float* v = nullptr;
};

// The backward pass of attend, by the same blocks: the probabilities are computed again (`out` of
// the head is not used). 10·queries·keys·head_dim flops; scratch grows to two blocks of scores,
// three with a cap.
void attend_back(const attention_head& head, const attention_gradient& gradient,
                 float_buffer& scratch);

} // namespace ressvd_llm
