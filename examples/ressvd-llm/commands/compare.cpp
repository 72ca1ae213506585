// SPDX-License-Identifier: Apache-2.0
#include "commands/compare.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <utility>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "commands/common.hpp"
#include "io/error.hpp"
#include "io/output_file.hpp"
#include "io/tokenizer.hpp"
#include "io/tokens.hpp"
#include "model/forward.hpp"
#include "model/generation.hpp"
#include "ui/chart.hpp"
#include "ui/progress.hpp"
#include "ui/table.hpp"

namespace ressvd_llm {
namespace {

// The field's window length, for models that reach so far.
constexpr std::int64_t usual_window = 2048;
// Hidden states of all models together.
constexpr std::uint64_t hidden_bytes = std::uint64_t{512} << 20;
constexpr double seconds_of_timing = 0.5;

using clock = std::chrono::steady_clock;

double seconds_since(clock::time_point start) {
  return std::chrono::duration<double>(clock::now() - start).count();
}

// Σ(a − b)² and Σa².
struct squares {
  double difference = 0;
  double reference = 0;

  void add(std::span<const float> a, std::span<const float> b) {
    for (std::size_t i = 0; i < a.size(); ++i) {
      const double x = a[i];
      const double d = x - static_cast<double>(b[i]);
      difference += d * d;
      reference += x * x;
    }
  }
  double relative() const { return reference > 0 ? std::sqrt(difference / reference) : 0; }
};

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

class comparison {
 public:
  explicit comparison(const std::vector<language_model>& models) : models_(models) {
    require_alike(models);
    for (const language_model& model : models) {
      engines_.emplace_back(model.config());
      errors_.emplace_back(static_cast<std::size_t>(model.config().layers));
    }
  }

  // One group of windows; adds to the losses and divergences of every model.
  void add(const token_windows& windows, std::vector<double>& losses,
           std::vector<double>& divergences) {
    const std::int64_t tokens = windows.count * windows.length;
    const model_config& config = models_.front().config();
    std::vector<std::vector<float>> hidden(
        models_.size(), std::vector<float>(static_cast<std::size_t>(tokens * config.hidden_size)));
    for (std::size_t m = 0; m < models_.size(); ++m) {
      engines_[m].embed(models_[m].outer(), windows.inputs, windows.length, hidden[m].data());
    }
    for (std::int64_t layer = 0; layer < config.layers; ++layer) {
      for (std::size_t m = 0; m < models_.size(); ++m) {
        engines_[m].layer(models_[m].layer(layer), hidden[m].data(), tokens, windows.length,
                          nullptr);
        errors_[m][static_cast<std::size_t>(layer)].add(hidden.front(), hidden[m]);
      }
    }
    std::vector<float> other;
    for_each_logits(
        models_.front(), engines_.front(), hidden.front().data(), tokens,
        [&](const float* reference, std::int64_t first, std::int64_t rows) {
          const std::span<const std::int32_t> targets(windows.targets.data() + first,
                                                      static_cast<std::size_t>(rows));
          losses.front() += sum(next_token_losses(reference, targets, config.vocab));
          other.resize(static_cast<std::size_t>(rows * config.vocab));
          for (std::size_t m = 1; m < models_.size(); ++m) {
            engines_[m].logits(models_[m].outer(), hidden[m].data() + first * config.hidden_size,
                               rows, other.data());
            losses[m] += sum(next_token_losses(other.data(), targets, config.vocab));
            divergences[m] += sum(kl_divergences(reference, other.data(), rows, config.vocab));
          }
        });
  }

  std::vector<double> layer_errors(std::size_t model) const {
    std::vector<double> result;
    for (const squares& s : errors_[model])
      result.push_back(s.relative());
    return result;
  }

  // The best of passes over the windows that together take a while. Weights are loaded by now.
  double speed(std::size_t model, const token_windows& windows) {
    const auto tokens = static_cast<double>(windows.count * windows.length);
    double best = 0;
    const auto start = clock::now();
    do {
      const auto begin = clock::now();
      const auto hidden = final_hidden(models_[model], engines_[model], windows);
      for_each_logits(models_[model], engines_[model], hidden.data(),
                      windows.count * windows.length,
                      [](const float*, std::int64_t, std::int64_t) {});
      best = std::max(best, tokens / seconds_since(begin));
    } while (seconds_since(start) < seconds_of_timing);
    return best;
  }

 private:
  static double sum(const std::vector<double>& values) {
    return std::accumulate(values.begin(), values.end(), 0.0);
  }

  const std::vector<language_model>& models_;
  std::vector<cpu_forward> engines_;
  std::vector<std::vector<squares>> errors_; // of each model and layer
};

struct compare_command {
  std::filesystem::path original;
  std::vector<std::filesystem::path> compressed;
  std::vector<std::filesystem::path> texts;
  std::vector<std::filesystem::path> tokens;
  std::int64_t seqlen = 0; // 0: usual_window or the model's context
  std::int64_t max_windows = 0;
  std::int64_t samples = 16;
  std::uint64_t seed = 0;
  std::filesystem::path json;
  std::filesystem::path chart;
};

std::vector<compared_text> read_texts(const compare_command& line, const language_model& model) {
  const model_config& config = model.config();
  const std::int64_t length =
      line.seqlen > 0 ? line.seqlen : std::min(usual_window, config.max_positions);
  const window_options windows{.length = length, .max_windows = line.max_windows};
  std::vector<compared_text> texts;
  const auto add = [&](const std::filesystem::path& file, const tokenizer* text) {
    const auto ids = read_tokens(file, config.vocab, text);
    require_window(file, ids, length);
    texts.push_back({file.filename().string(), cut_windows(ids, windows)});
  };
  if (!line.texts.empty()) {
    const auto text = open_tokenizer(line.original, config);
    for (const auto& file : line.texts)
      add(file, text.get());
  }
  for (const auto& file : line.tokens) {
    if (!holds_token_ids(file)) {
      throw usage_error("--tokens " + file.string() + ": expected .npy, .u16 or .u32");
    }
    add(file, nullptr);
  }
  if (texts.empty()) {
    progress bar("sampling", fraction_steps);
    const auto ids = sample_texts(model, {.count = line.samples,
                                          .length = length,
                                          .sampling = {.seed = line.seed},
                                          .progress = show_fractions(bar)});
    texts.push_back({"self", cut_windows(ids, windows)});
  }
  return texts;
}

void print(const std::vector<std::string>& names, const std::vector<compared_text>& texts,
           const std::vector<model_figures>& figures) {
  std::vector<std::vector<std::string>> rows{{"model", "parameters", "bytes", "tokens/s"}};
  for (const compared_text& text : texts) {
    rows.front().push_back("perplexity " + printable(text.name));
    rows.front().push_back("KL");
  }
  for (std::size_t m = 0; m < figures.size(); ++m) {
    rows.push_back({names[m], cell(figures[m].parameters),
                    cell(static_cast<std::int64_t>(figures[m].bytes)),
                    cell(figures[m].tokens_per_second, 0)});
    for (const text_figures& text : figures[m].texts) {
      rows.back().push_back(cell(text.perplexity, 4));
      rows.back().push_back(cell(text.divergence, 5));
    }
  }
  std::printf("%s\nrelative error of the hidden states after each layer\n", to_text(rows).c_str());
  rows = {{"layer"}};
  for (std::size_t layer = 0; layer < figures.front().layer_errors.size(); ++layer) {
    rows.front().push_back(std::to_string(layer));
  }
  for (std::size_t m = 1; m < figures.size(); ++m) {
    rows.push_back({names[m]});
    for (const double error : figures[m].layer_errors)
      rows.back().push_back(cell(error, 4));
  }
  std::fputs(to_text(rows).c_str(), stdout);
}

nlohmann::ordered_json report(const std::vector<std::string>& names,
                              const std::vector<compared_text>& texts,
                              const std::vector<model_figures>& figures) {
  nlohmann::ordered_json models = nlohmann::ordered_json::array();
  for (std::size_t m = 0; m < figures.size(); ++m) {
    nlohmann::ordered_json of_texts = nlohmann::ordered_json::array();
    for (std::size_t t = 0; t < texts.size(); ++t) {
      of_texts.push_back({{"text", texts[t].name},
                          {"windows", texts[t].windows.count},
                          {"predicted_tokens", texts[t].windows.count * texts[t].windows.length},
                          {"perplexity", figures[m].texts[t].perplexity},
                          {"divergence", figures[m].texts[t].divergence}});
    }
    models.push_back({{"model", names[m]},
                      {"parameters", figures[m].parameters},
                      {"bytes", figures[m].bytes},
                      {"tokens_per_second", figures[m].tokens_per_second},
                      {"texts", std::move(of_texts)},
                      {"layer_errors", figures[m].layer_errors}});
  }
  return {{"original", names.front()}, {"models", std::move(models)}};
}

chart error_curves(const std::vector<std::string>& names,
                   const std::vector<model_figures>& figures) {
  chart picture{.title = "Relative error of the hidden states",
                .x_label = "after layer",
                .y_label = "error",
                .y_from_zero = true,
                .lines = {}};
  for (std::size_t m = 1; m < figures.size(); ++m) {
    std::vector<double> layers(figures[m].layer_errors.size());
    std::iota(layers.begin(), layers.end(), 0.0);
    picture.lines.push_back({names[m], std::move(layers), figures[m].layer_errors});
  }
  return picture;
}

void run(const compare_command& line) {
  std::vector<language_model> models{language_model::open(line.original)};
  std::vector<std::string> names{printable(line.original.string())};
  for (const auto& directory : line.compressed) {
    models.push_back(language_model::open(directory));
    names.push_back(printable(directory.string()));
  }
  require_alike(models);
  const auto texts = read_texts(line, models.front());
  std::vector<model_figures> figures;
  {
    progress bar("comparing", fraction_steps);
    figures = compare_models(models, texts, show_fractions(bar));
  }
  print(names, texts, figures);
  if (!line.json.empty()) {
    write_whole_file(line.json, report(names, texts, figures).dump(2) + "\n");
  }
  if (!line.chart.empty()) write_whole_file(line.chart, to_svg(error_curves(names, figures)));
}

} // namespace

std::vector<model_figures> compare_models(const std::vector<language_model>& models,
                                          const std::vector<compared_text>& texts,
                                          const progress_function& progress) {
  comparison all(models);
  const model_config& config = models.front().config();
  std::vector<model_figures> figures(models.size());
  std::int64_t total = 0;
  for (const compared_text& text : texts)
    total += text.windows.count;
  std::int64_t done = 0;
  for (const compared_text& text : texts) {
    const std::int64_t group = windows_at_once(text.windows, config, models.size());
    std::vector<double> losses(models.size());
    std::vector<double> divergences(models.size());
    for (std::int64_t first = 0; first < text.windows.count; first += group) {
      const std::int64_t count = std::min(group, text.windows.count - first);
      all.add(part_of(text.windows, first, count), losses, divergences);
      done += count;
      if (progress) progress(static_cast<double>(done) / static_cast<double>(total));
    }
    const auto predicted = static_cast<double>(text.windows.count * text.windows.length);
    for (std::size_t m = 0; m < models.size(); ++m) {
      figures[m].texts.push_back({std::exp(losses[m] / predicted), divergences[m] / predicted});
    }
  }
  const token_windows& timed = texts.front().windows;
  const token_windows timed_part =
      part_of(timed, 0, std::min<std::int64_t>(windows_at_once(timed, config, 1), 16));
  for (std::size_t m = 0; m < models.size(); ++m) {
    const checkpoint& source = models[m].source();
    for (const std::string& name : source.names())
      figures[m].parameters += source.describe(name).elements;
    figures[m].bytes = source.file_bytes();
    figures[m].layer_errors = all.layer_errors(m);
    figures[m].tokens_per_second = all.speed(m, timed_part);
  }
  return figures;
}

void add_compare(CLI::App& app) {
  const auto line = std::make_shared<compare_command>();
  CLI::App* const command = app.add_subcommand(
      "compare",
      "Compare compressed models with the original: parameters, bytes, perplexity, KL divergence,\n"
      "speed of the forward pass, error of the hidden states after each layer. Without a text, on\n"
      "samples that the original writes itself.");
  command->add_option("ORIGINAL", line->original, "Model directory")->required();
  command->add_option("COMPRESSED", line->compressed, "Directories of compressed models")
      ->required();
  command->add_option("--text", line->texts, "Text file (.txt); may be given several times")
      ->allow_extra_args(false);
  command
      ->add_option("--tokens", line->tokens,
                   "Token ids (.npy, .u16, .u32); may be given several times")
      ->allow_extra_args(false);
  command
      ->add_option("--seqlen", line->seqlen,
                   "Window length (default: 2048, or the model's context where it is shorter)")
      ->check(CLI::Range(std::int64_t{2}, std::int64_t{1} << 31));
  command->add_option("--max-windows", line->max_windows, "Use only the first so many of a text")
      ->check(CLI::PositiveNumber);
  command->add_option("--samples", line->samples, "Samples to write where no text is given")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--seed", line->seed, "Of these samples")->capture_default_str();
  add_threads_option(*command);
  command->add_option("--json", line->json, "Write a report into this file");
  command->add_option("--chart", line->chart,
                      "Write an SVG chart of the layer-wise errors into this file");
  command->callback([line] { run(*line); });
}

} // namespace ressvd_llm
