// SPDX-License-Identifier: Apache-2.0
#include "compress/sequential_refinement.hpp"

#include <algorithm>
#include <span>
#include <string>
#include <utility>

#include <nlohmann/json.hpp>

#include "compress/resume.hpp"
#include "io/error.hpp"
#include "io/output_file.hpp"
#include "io/paths.hpp"

namespace ressvd_llm {
namespace {

// A tenth, two of them at least where that leaves one for training.
std::int64_t held_out(std::int64_t windows) {
  return std::clamp<std::int64_t>(windows / 10, (std::min)(std::int64_t{2}, windows - 1), windows);
}

std::filesystem::path block_file(const std::filesystem::path& scratch, std::int64_t layer) {
  return scratch / ("refined-" + std::to_string(layer) + ".json");
}

std::span<const float> on_host(const hidden_states& states) {
  return {states.data(), static_cast<std::size_t>(states.size())};
}

bool any_factored(const layer_weights& weights) {
  return std::ranges::any_of(weights.linears, &linear::factored);
}

} // namespace

sequential_refinement::sequential_refinement(model_passes& passes, const refine_options& options,
                                             std::uint64_t seed, const sample_set& samples)
    : passes_(passes.on_host()),
      block_(passes.config(), options, seed),
      anchor_(options.anchor),
      length_(samples.length),
      windows_(samples.count()),
      training_(windows_ - held_out(windows_)),
      original_(passes_.embed(samples)) {
  if (windows_ < 2)
    throw usage_error("--refine needs at least 2 samples: one to train on, one to judge by");
}

std::optional<refined_block> sequential_refinement::refine(layer_weights& weights,
                                                           const std::function<void()>& stepped) {
  if (!any_factored(weights)) {
    skip(weights);
    return std::nullopt;
  }
  if (compressed_.empty()) compressed_ = original_;
  passes_.run_original(layer_, original_, length_);
  hidden_states mixed;
  if (anchor_ > 0) {
    mixed = compressed_;
    passes_.run_original(layer_, mixed, length_);
    const auto share = static_cast<float>(anchor_);
    float* const values = mixed.data();
    const std::span<const float> originals = on_host(original_);
    for (std::size_t i = 0; i < originals.size(); ++i)
      values[i] = share * values[i] + (1 - share) * originals[i];
  }
  const std::span<const float> target = on_host(anchor_ > 0 ? mixed : original_);
  refined_block report = block_.refine(layer_, weights,
                                       {.input = on_host(compressed_),
                                        .target = target,
                                        .window_length = length_,
                                        .training_windows = training_},
                                       stepped);
  passes_.run(weights, compressed_, length_);
  ++layer_;
  const window_errors errors =
      errors_of(on_host(compressed_), target, length_ * passes_.config().hidden_size);
  report.after = {errors.relative(0, training_), errors.relative(training_, windows_)};
  return report;
}

void sequential_refinement::skip(const layer_weights& refined) {
  if (compressed_.empty() && any_factored(refined)) compressed_ = original_;
  if (!compressed_.empty()) passes_.run(refined, compressed_, length_);
  passes_.run_original(layer_, original_, length_);
  ++layer_;
}

void save_block(const std::filesystem::path& scratch, const refined_block& block) {
  write_whole_file(block_file(scratch, block.layer), to_json(block).dump());
}

std::optional<refined_block> load_block(const std::filesystem::path& scratch, std::int64_t layer) {
  const std::filesystem::path file = block_file(scratch, layer);
  if (!std::filesystem::exists(file)) return std::nullopt;
  try {
    constexpr std::uint64_t largest = 1 << 20;
    return refined_block_from_json(nlohmann::json::parse(read_text(file, largest)));
  } catch (const nlohmann::json::exception&) {
    fail_damaged(file);
  }
}

} // namespace ressvd_llm
