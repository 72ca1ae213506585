// SPDX-License-Identifier: Apache-2.0
#include "compress/samples.hpp"

#include <algorithm>
#include <functional>
#include <memory>
#include <random>
#include <span>
#include <utility>

#include <nlohmann/json.hpp>

#include "compress/resume.hpp"
#include "io/error.hpp"
#include "io/output_file.hpp"
#include "io/paths.hpp"
#include "io/tokenizer.hpp"
#include "io/tokens.hpp"
#include "model/generation.hpp"
#include "ui/progress.hpp"

namespace ressvd_llm {
namespace {

// Uniform in [0, count), the same on every platform.
std::int64_t draw_below(std::mt19937_64& engine, std::int64_t count) {
  const auto n = static_cast<std::uint64_t>(count);
  const std::uint64_t limit = engine.max() - engine.max() % n;
  std::uint64_t value = engine();
  while (value >= limit)
    value = engine();
  return static_cast<std::int64_t>(value % n);
}

void append(sample_set& set, std::span<const std::int32_t> ids, std::int64_t start) {
  const auto first = ids.begin() + start;
  set.ids.insert(set.ids.end(), first, first + set.length);
}

calibration_samples cut_file(const compress_options& options, const language_model& model,
                             std::int64_t length) {
  std::unique_ptr<tokenizer> text;
  if (!holds_token_ids(options.calibration)) {
    text = open_tokenizer(options.model, model.config());
  }
  const auto ids = read_tokens(options.calibration, model.config().vocab, text.get());
  const auto size = static_cast<std::int64_t>(ids.size());
  require_window(options.calibration, ids, length);
  calibration_samples samples{{length, {}}, {length, {}}};
  if (options.windows == window_choice::first) {
    if (size < options.samples * length) {
      throw file_error(options.calibration, "holds " + std::to_string(size) + " tokens, " +
                                                std::to_string(options.samples) + " windows need " +
                                                std::to_string(options.samples * length));
    }
    for (std::int64_t i = 0; i < options.samples; ++i)
      append(samples.calibration, ids, i * length);
    const std::int64_t rest = size / length - options.samples;
    for (std::int64_t i = 0; i < (std::min)(rest, options.heldout_samples); ++i) {
      append(samples.heldout, ids, (options.samples + i) * length);
    }
    return samples;
  }
  const std::int64_t reserved = options.heldout_samples > 0 ? size / 10 : 0;
  const std::int64_t starts = size - reserved - length + 1;
  if (starts < 1) {
    throw file_error(options.calibration, "holds " + std::to_string(size) +
                                              " tokens, too few for windows of " +
                                              std::to_string(length) + " beside the held-out part");
  }
  std::mt19937_64 engine(options.seed);
  for (std::int64_t i = 0; i < options.samples; ++i) {
    append(samples.calibration, ids, draw_below(engine, starts));
  }
  if (reserved >= length) {
    for (std::int64_t i = 0; i < options.heldout_samples; ++i) {
      append(samples.heldout, ids, size - reserved + draw_below(engine, reserved - length + 1));
    }
  }
  return samples;
}

} // namespace

sample_set sample_set::first(std::int64_t windows) const {
  sample_set part{length, {}};
  const std::int64_t kept = (std::min)(windows, count());
  part.ids.assign(ids.begin(), ids.begin() + kept * length);
  return part;
}

calibration_samples make_samples(const compress_options& options, const language_model& model) {
  const std::int64_t length = (std::min)(options.seqlen, model.config().max_positions);
  const std::int64_t needed = samples_needed(options);
  if (!options.calibration.empty()) {
    calibration_samples samples = cut_file(options, model, length);
    samples.calibration = samples.calibration.first(needed);
    return samples;
  }
  const std::int64_t count = needed + options.heldout_samples;
  if (count == 0) return {{length, {}}, {length, {}}};
  fraction_progress bar("sampling");
  // The held-out samples do not depend on how many of those before them are needed.
  const auto ids = sample_texts(model, {.count = count,
                                        .first = options.samples - needed,
                                        .length = length,
                                        .sampling = {.seed = options.seed},
                                        .progress = std::ref(bar)});
  const auto split = ids.begin() + needed * length;
  return {{length, {ids.begin(), split}}, {length, {split, ids.end()}}};
}

void save_samples(const std::filesystem::path& file, const calibration_samples& samples) {
  const nlohmann::ordered_json json{{"length", samples.calibration.length},
                                    {"calibration", samples.calibration.ids},
                                    {"heldout", samples.heldout.ids}};
  write_whole_file(file, json.dump());
}

calibration_samples load_samples(const std::filesystem::path& file, const model_config& config) {
  constexpr std::uint64_t largest = std::uint64_t{1} << 32;
  calibration_samples samples;
  try {
    const auto json = nlohmann::json::parse(read_text(file, largest));
    for (const auto& [name, set] :
         {std::pair{"calibration", &samples.calibration}, std::pair{"heldout", &samples.heldout}}) {
      set->length = json.at("length");
      set->ids = json.at(name).get<std::vector<std::int32_t>>();
    }
  } catch (const nlohmann::json::exception&) {
    fail_damaged(file);
  }
  for (const sample_set* set : {&samples.calibration, &samples.heldout}) {
    if (set->length < 1 || set->length > config.max_positions ||
        set->tokens() != set->count() * set->length ||
        std::ranges::any_of(set->ids,
                            [&](std::int32_t id) { return id < 0 || id >= config.vocab; })) {
      fail_damaged(file);
    }
  }
  return samples;
}

} // namespace ressvd_llm
