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

sample_set write_samples(const language_model& model, const sample_options& options) {
  if (options.count == 0) return {options.length, {}};
  fraction_progress bar("sampling");
  sample_options shown = options;
  shown.progress = std::ref(bar);
  return {options.length, sample_texts(model, shown)};
}

// The first `count` of all windows of a text and `self` ones of the model's, of which `own` holds
// the first: in their order, and of either kind an equal share as far as one goes.
sample_set mixed(const sample_set& text, const sample_set& own, std::int64_t self,
                 std::int64_t count) {
  const std::int64_t all = text.count() + self;
  sample_set result{text.length, {}};
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t before = i * self / all;
    const bool next_own = (i + 1) * self / all > before;
    append(result, next_own ? own.ids : text.ids, (next_own ? before : i - before) * text.length);
  }
  return result;
}

} // namespace

sample_set sample_set::first(std::int64_t windows) const {
  sample_set part{length, {}};
  const std::int64_t kept = (std::min)(windows, count());
  part.ids.assign(ids.begin(), ids.begin() + kept * length);
  return part;
}

calibration_samples make_samples(const compress_options& options, const language_model& model,
                                 std::int64_t needed) {
  const std::int64_t length = (std::min)(options.seqlen, model.config().max_positions);
  if (!options.calibration.empty()) {
    calibration_samples samples = cut_file(options, model, length);
    const sample_set own =
        write_samples(model, {.count = needed * options.self_samples / all_samples(options),
                              .length = length,
                              .sampling = {.seed = options.seed}});
    samples.calibration = mixed(samples.calibration, own, options.self_samples, needed);
    return samples;
  }
  // The held-out samples do not depend on how many of those before them are needed.
  const sample_set all = write_samples(model, {.count = needed + options.heldout_samples,
                                               .first = options.samples - needed,
                                               .length = length,
                                               .sampling = {.seed = options.seed}});
  const auto split = all.ids.begin() + needed * length;
  return {{length, {all.ids.begin(), split}}, {length, {split, all.ids.end()}}};
}

calibration_samples make_samples(const compress_options& options, const language_model& model) {
  return make_samples(options, model, samples_needed(options));
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
