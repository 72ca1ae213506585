// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <random>
#include <span>
#include <vector>

#include "model/evaluation.hpp"
#include "model/forward.hpp"
#include "model/language_model.hpp"

namespace ressvd_llm {

// Runs sequences of equal length through a model token by token, with the keys and values of
// earlier tokens kept: 2·layers·capacity·kv_heads·head_dim floats a sequence. The model must
// outlive the object.
class decoder {
 public:
  // Throws std::invalid_argument for fewer than one sequence or position, and for more positions
  // than a learned position table has.
  decoder(const language_model& model, std::int64_t sequences, std::int64_t capacity);

  // Appends ids.size()/sequences tokens to every sequence, ids grouped by sequence, and returns
  // the logits after each sequence's last token: sequences × vocab, valid until the next call.
  // Throws std::invalid_argument when the capacity is exceeded.
  std::span<const float> append(std::span<const std::int32_t> ids);

  // Tokens appended to each sequence so far.
  std::int64_t length() const { return length_; }

 private:
  const language_model* model_;
  cpu_forward forward_;
  std::int64_t sequences_ = 0;
  std::int64_t capacity_ = 0;
  std::int64_t length_ = 0;
  std::vector<layer_cache> caches_;
  std::vector<float> hidden_;
  std::vector<float> logits_;
};

struct sampling_options {
  double temperature = 1.0; // 0: always the likeliest token
  std::int64_t top_k = 0;   // draw among the so many likeliest tokens; 0: among all
  std::uint64_t seed = 0;
};

// A sequence of draws that is the same on every platform, one for each (seed, index).
class draw_stream {
 public:
  draw_stream(std::uint64_t seed, std::uint64_t index);

  // Uniform in [0, 1).
  double next();

 private:
  std::mt19937_64 engine_;
};

// Draws from softmax(logits / temperature), in float64. Among equal logits the lowest id counts as
// the likelier. Throws std::runtime_error for a logit that is not finite and std::invalid_argument
// for a negative temperature or top_k.
std::int32_t sample_token(std::span<const float> logits, const sampling_options& options,
                          draw_stream& draws);

struct generation_options {
  std::int64_t tokens = 200;
  // Generation ends before one of these.
  std::vector<std::int32_t> stop = {};
  sampling_options sampling = {};
  progress_function progress = {};
};

// The continuation of a prompt, without the prompt. Throws std::invalid_argument for an empty
// prompt.
std::vector<std::int32_t> generate(const language_model& model,
                                   std::span<const std::int32_t> prompt,
                                   const generation_options& options);

struct sample_options {
  std::int64_t count = 128;
  std::int64_t first = 0; // number of the first one
  std::int64_t length = 256;
  sampling_options sampling = {};
  // Keys and values held at a time; the samples are drawn in as many batches as that needs.
  std::uint64_t memory_limit = std::uint64_t{2} << 30;
  progress_function progress = {};
};

// Texts the model writes itself, count × length token ids, to calibrate on when no text is at
// hand. Every sample is what follows the model's beginning-of-sequence token (or a random token
// where it has none), without that token, as evaluation texts are cut. Sample i depends on the seed
// and i, not on how many there are.
std::vector<std::int32_t> sample_texts(const language_model& model, const sample_options& options);

} // namespace ressvd_llm
