// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "io/tokens.hpp"
#include "model/evaluation.hpp"
#include "model/forward.hpp"
#include "model/language_model.hpp"

namespace ressvd_llm::testing {

// Float32 rounding through a few layers: a relative error of 1e-5 is about a hundred roundings.
inline constexpr double rounding = 1e-5;

inline const std::vector<std::string> families = {"llama",  "llama3", "llama_linear", "mistral",
                                                  "opt",    "qwen2",  "qwen3",        "gemma2",
                                                  "gemma3", "phi3",   "mixtral",      "qwen3_moe"};

// A small random model and the logits another implementation computed for two windows.
struct fixture {
  explicit fixture(const std::string& name)
      : directory(std::filesystem::path(RESSVD_LLM_FIXTURES) / name),
        config(read_config(directory)),
        tokens(read_tokens(directory / "tokens.u16", config.vocab, nullptr)),
        logits(tokens.size() * static_cast<std::size_t>(config.vocab)) {
    std::ifstream file(directory / "logits.f32", std::ios::binary);
    file.read(reinterpret_cast<char*>(logits.data()),
              static_cast<std::streamsize>(logits.size() * sizeof(float)));
    if (!file) throw std::runtime_error("fixture " + name + ": logits.f32 is short");
  }

  std::int64_t windows() const { return 2; }
  std::int64_t window() const { return static_cast<std::int64_t>(tokens.size()) / windows(); }

  std::filesystem::path directory;
  model_config config;
  std::vector<std::int32_t> tokens; // windows × window
  std::vector<float> logits;        // windows × window × vocab
};

// The fixture's directory, or a copy of it in `directory` with the scale of scores that llama.cpp
// takes for Gemma's, which GGUF files do not state.
inline std::filesystem::path usual_in_gguf(const fixture& f,
                                           const std::filesystem::path& directory) {
  if (f.config.attention_scale == 0) return f.directory;
  std::filesystem::copy(f.directory, directory);
  auto json = nlohmann::ordered_json::parse(f.config.text);
  json["query_pre_attn_scalar"] = f.config.head_dim;
  std::ofstream(directory / "config.json") << json.dump();
  return directory;
}

inline std::vector<float> run(const language_model& model, forward_engine& engine,
                              const std::vector<std::int32_t>& ids, std::int64_t window) {
  const auto tokens = static_cast<std::int64_t>(ids.size());
  const engine_matrix hidden = final_hidden(
      model, engine, {.count = tokens / window, .length = window, .inputs = ids, .targets = {}});
  engine_matrix logits;
  engine.logits(model.outer(), hidden, 0, tokens, logits);
  return logits.values();
}

inline std::vector<float> run(const language_model& model, const std::vector<std::int32_t>& ids,
                              std::int64_t window) {
  cpu_forward engine(model.config());
  return run(model, engine, ids, window);
}

// ‖a − b‖ / ‖b‖; infinite when sizes differ or a value is not a number.
inline double relative_error(std::span<const float> a, std::span<const float> b) {
  if (a.size() != b.size()) return INFINITY;
  double difference = 0.0;
  double reference = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double x = static_cast<double>(a[i]);
    const double y = static_cast<double>(b[i]);
    difference += (x - y) * (x - y);
    reference += y * y;
  }
  const double error = std::sqrt(difference / reference);
  return std::isnan(error) ? static_cast<double>(INFINITY) : error;
}

inline std::vector<float> random_values(std::int64_t count, unsigned seed) {
  std::mt19937 engine(seed);
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values)
    value = static_cast<float>(engine()) / 2147483648.0f - 1.0f;
  return values;
}

// 0 … count − 1 in random order.
inline std::vector<std::int32_t> random_order(std::int64_t count, unsigned seed) {
  std::vector<std::int32_t> order(static_cast<std::size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937(seed));
  return order;
}

} // namespace ressvd_llm::testing
