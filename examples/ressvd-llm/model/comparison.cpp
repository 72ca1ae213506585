// SPDX-License-Identifier: Apache-2.0
#include "model/comparison.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <numeric>
#include <span>
#include <utility>

#include "io/error.hpp"
#include "model/forward.hpp"
#include "model/parallel.hpp"

namespace ressvd_llm {
namespace {

// Hidden states of all models together.
constexpr std::uint64_t hidden_bytes = std::uint64_t{512} << 20;
constexpr double seconds_of_timing = 0.5;

using clock = std::chrono::steady_clock;

double seconds_since(clock::time_point start) {
  return std::chrono::duration<double>(clock::now() - start).count();
}

token_windows part_of(const token_windows& windows, std::int64_t first, std::int64_t count) {
  const auto cut = [&](const std::vector<std::int32_t>& ids) {
    const auto start = ids.begin() + first * windows.length;
    return std::vector<std::int32_t>(start, start + count * windows.length);
  };
  return {count, windows.length, cut(windows.inputs), cut(windows.targets)};
}

// Windows whose hidden states fit, at least one.
std::int64_t windows_at_once(const token_windows& windows, const model_config& config,
                             std::size_t models) {
  const std::uint64_t bytes = static_cast<std::uint64_t>(windows.length) *
                              static_cast<std::uint64_t>(config.hidden_size) * sizeof(float) *
                              models;
  return std::clamp<std::int64_t>(static_cast<std::int64_t>(hidden_bytes / bytes), 1,
                                  windows.count);
}

// Logits of the reference and of one other model at a time.
constexpr std::int64_t logits_buffers = 2;

class comparison {
 public:
  comparison(const std::vector<language_model>& models, std::int64_t window_length,
             const std::shared_ptr<device>& card)
      : models_(models) {
    require_alike(models);
    for (const language_model& model : models) {
      engines_.push_back(make_forward_engine(model.config(), card,
                                             {.weight_bytes = share_of(card, window_length)}));
      errors_.emplace_back(static_cast<std::size_t>(model.config().layers));
    }
  }

  // All windows of a text. `done` is called with the number of windows of each group.
  template <class Done>
  std::vector<text_figures> add_text(const token_windows& windows, const Done& done) {
    const std::int64_t group = windows_at_once(windows, models_.front().config(), models_.size());
    std::vector<double> losses(models_.size());
    std::vector<double> divergences(models_.size());
    for (std::int64_t first = 0; first < windows.count; first += group) {
      const std::int64_t count = std::min(group, windows.count - first);
      add(part_of(windows, first, count), losses, divergences);
      done(count);
    }
    const auto predicted = static_cast<double>(windows.count * windows.length);
    std::vector<text_figures> figures;
    for (std::size_t m = 0; m < models_.size(); ++m) {
      figures.push_back({std::exp(losses[m] / predicted), divergences[m] / predicted});
    }
    return figures;
  }

  std::vector<double> layer_errors(std::size_t model) const {
    std::vector<double> result;
    for (const relative_error_sum& error : errors_[model])
      result.push_back(error.value());
    return result;
  }

  // The best of passes over the windows that together take a while. Weights are loaded by now.
  double speed(std::size_t model, const token_windows& windows) {
    const auto tokens = static_cast<double>(windows.count * windows.length);
    double best = 0;
    const auto start = clock::now();
    do {
      const auto begin = clock::now();
      const auto hidden = final_hidden(models_[model], *engines_[model], windows);
      for_each_logits(models_[model], *engines_[model], hidden,
                      [](const engine_matrix&, std::int64_t) {});
      (void)hidden.part(0, 1).values(); // a card has only queued it so far
      best = std::max(best, tokens / seconds_since(begin));
    } while (seconds_since(start) < seconds_of_timing);
    return best;
  }

 private:
  // What each model's matrices may keep of a card; the rest is for states, buffers and logits.
  std::uint64_t share_of(const std::shared_ptr<device>& card, std::int64_t window_length) const {
    if (card == nullptr) return 0;
    return room_for_weights(*card, memory_of(*card) / models_.size(), models_.front().config(),
                            window_length, hidden_bytes / models_.size());
  }

  // One group of windows; adds to the losses and divergences of every model.
  void add(const token_windows& windows, std::vector<double>& losses,
           std::vector<double>& divergences) {
    std::vector<engine_matrix> hidden;
    for (std::size_t m = 0; m < models_.size(); ++m)
      hidden.push_back(engines_[m]->embed(models_[m].outer(), windows.inputs, windows.length));
    for (std::int64_t layer = 0; layer < models_.front().config().layers; ++layer) {
      for (std::size_t m = 0; m < models_.size(); ++m) {
        engines_[m]->layer(models_[m].layer(layer), hidden[m], windows.length);
        errors_[m][static_cast<std::size_t>(layer)].add(hidden.front(), hidden[m]);
      }
    }
    engine_matrix other;
    for_each_logits(
        models_.front(), *engines_.front(), hidden.front(),
        [&](const engine_matrix& reference, std::int64_t first) {
          const std::span<const std::int32_t> targets(windows.targets.data() + first,
                                                      static_cast<std::size_t>(reference.rows()));
          losses.front() += sum(next_token_losses(reference, targets));
          for (std::size_t m = 1; m < models_.size(); ++m) {
            engines_[m]->logits(models_[m].outer(), hidden[m], first, reference.rows(), other);
            losses[m] += sum(next_token_losses(other, targets));
            divergences[m] += sum(kl_divergences(reference, other));
          }
        });
  }

  static double sum(const std::vector<double>& values) {
    return std::accumulate(values.begin(), values.end(), 0.0);
  }

  const std::vector<language_model>& models_;
  std::vector<std::unique_ptr<forward_engine>> engines_;
  std::vector<std::vector<relative_error_sum>> errors_; // of each model and layer
};

} // namespace

std::uint64_t comparison_buffers(const model_config& config, std::int64_t windows,
                                 std::int64_t window_length, std::size_t models) {
  const std::uint64_t a_window =
      static_cast<std::uint64_t>(window_length * config.hidden_size) * sizeof(float) * models;
  const std::uint64_t states =
      std::min(static_cast<std::uint64_t>(windows) * a_window, std::max(hidden_bytes, a_window));
  const std::int64_t rows = logits_block(config.vocab, windows * window_length);
  const std::uint64_t logits =
      static_cast<std::uint64_t>(logits_buffers * rows * config.vocab) * sizeof(float);
  return states + logits + models * forward_buffers(config, window_length, thread_count());
}

void require_alike(const std::vector<language_model>& models) {
  const model_config& original = models.front().config();
  for (const language_model& model : models) {
    const auto require = [&](std::int64_t expected, std::int64_t found, const char* what) {
      if (expected == found) return;
      throw usage_error(model.source().path().string() + ": " + what + " " + std::to_string(found) +
                        ", the original's is " + std::to_string(expected));
    };
    require(original.vocab, model.config().vocab, "its vocabulary is");
    require(original.hidden_size, model.config().hidden_size, "its hidden size is");
    require(original.layers, model.config().layers, "its number of layers is");
  }
}

std::vector<model_figures> compare_models(const std::vector<language_model>& models,
                                          const std::vector<compared_text>& texts,
                                          const progress_function& progress,
                                          const std::shared_ptr<device>& card) {
  std::int64_t longest = 1;
  for (const compared_text& text : texts)
    longest = std::max(longest, text.windows.length);
  comparison all(models, longest, card);
  const model_config& config = models.front().config();
  std::vector<model_figures> figures(models.size());
  std::int64_t total = 0;
  for (const compared_text& text : texts)
    total += text.windows.count;
  std::int64_t done = 0;
  for (const compared_text& text : texts) {
    const auto of_text = all.add_text(text.windows, [&](std::int64_t windows) {
      done += windows;
      if (progress) progress(static_cast<double>(done) / static_cast<double>(total));
    });
    for (std::size_t m = 0; m < models.size(); ++m)
      figures[m].texts.push_back(of_text[m]);
  }
  const token_windows& timed = texts.front().windows;
  const token_windows timed_part =
      part_of(timed, 0, std::min<std::int64_t>(windows_at_once(timed, config, 1), 16));
  for (std::size_t m = 0; m < models.size(); ++m) {
    const checkpoint& source = models[m].source();
    for (const std::string& name : parameter_names(source, models[m].config()))
      figures[m].parameters += source.describe(name).elements;
    figures[m].bytes = source.file_bytes();
    figures[m].layer_errors = all.layer_errors(m);
    figures[m].tokens_per_second = all.speed(m, timed_part);
  }
  return figures;
}

std::vector<text_figures> compare_on_text(const std::vector<language_model>& models,
                                          const token_windows& windows,
                                          const std::shared_ptr<device>& card) {
  return comparison(models, windows.length, card).add_text(windows, [](std::int64_t) {});
}

} // namespace ressvd_llm
