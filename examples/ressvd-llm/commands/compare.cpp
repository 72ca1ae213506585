// SPDX-License-Identifier: Apache-2.0
#include "commands/compare.hpp"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "commands/checks.hpp"
#include "commands/context_check.hpp"
#include "commands/device_options.hpp"
#include "commands/threads_option.hpp"
#include "io/error.hpp"
#include "io/output_file.hpp"
#include "io/tokenizer.hpp"
#include "io/tokens.hpp"
#include "model/comparison.hpp"
#include "model/generation.hpp"
#include "ui/progress.hpp"
#include "ui/table.hpp"

namespace ressvd_llm {
namespace {

// The field's window length, for models that reach so far.
constexpr std::int64_t usual_window = 2048;

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
  backend_choice backend = backend_choice::automatic;
  device_options device;
};

std::vector<compared_text> read_texts(const compare_command& line, const language_model& model) {
  const model_config& config = model.config();
  const std::int64_t length =
      line.seqlen > 0 ? line.seqlen : std::min(usual_window, config.max_positions);
  require_context(config, length, "--seqlen " + std::to_string(length));
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
    fraction_progress bar("sampling");
    const auto ids = sample_texts(model, {.count = line.samples,
                                          .length = length,
                                          .sampling = {.seed = line.seed},
                                          .progress = std::ref(bar)});
    texts.push_back({"self", cut_windows(ids, windows)});
  }
  return texts;
}

// What --json writes.
struct comparison_report {
  std::vector<std::string> names; // of the models, the original first
  std::vector<compared_text> texts;
  std::vector<model_figures> figures; // of the models
};

nlohmann::ordered_json to_json(const comparison_report& report) {
  auto models = nlohmann::ordered_json::array();
  for (std::size_t m = 0; m < report.figures.size(); ++m) {
    const model_figures& figures = report.figures[m];
    auto texts = nlohmann::ordered_json::array();
    for (std::size_t t = 0; t < report.texts.size(); ++t) {
      const token_windows& windows = report.texts[t].windows;
      texts.push_back({{"text", report.texts[t].name},
                       {"windows", windows.count},
                       {"predicted_tokens", windows.count * windows.length},
                       {"perplexity", figures.texts[t].perplexity},
                       {"divergence", figures.texts[t].divergence}});
    }
    models.push_back({{"model", report.names[m]},
                      {"parameters", figures.parameters},
                      {"bytes", figures.bytes},
                      {"tokens_per_second", figures.tokens_per_second},
                      {"texts", std::move(texts)},
                      {"layer_errors", figures.layer_errors}});
  }
  return {{"original", report.names.front()}, {"models", std::move(models)}};
}

void print(const comparison_report& report) {
  std::vector<std::vector<std::string>> rows{{"model", "parameters", "bytes", "tokens/s"}};
  for (const compared_text& text : report.texts) {
    rows.front().push_back("perplexity " + printable(text.name));
    rows.front().push_back("KL");
  }
  for (std::size_t m = 0; m < report.figures.size(); ++m) {
    const model_figures& figures = report.figures[m];
    rows.push_back({report.names[m], cell(figures.parameters),
                    cell(static_cast<std::int64_t>(figures.bytes)),
                    cell(figures.tokens_per_second, 0)});
    for (const text_figures& text : figures.texts) {
      rows.back().push_back(cell(text.perplexity, 4));
      rows.back().push_back(cell(text.divergence, 5));
    }
  }
  std::printf("%s\nrelative error of the hidden states after each layer\n", to_text(rows).c_str());
  rows = {{"layer"}};
  for (std::size_t layer = 0; layer < report.figures.front().layer_errors.size(); ++layer) {
    rows.front().push_back(std::to_string(layer));
  }
  for (std::size_t m = 1; m < report.figures.size(); ++m) {
    rows.push_back({report.names[m]});
    for (const double error : report.figures[m].layer_errors)
      rows.back().push_back(cell(error, 4));
  }
  std::fputs(to_text(rows).c_str(), stdout);
}

void run(const compare_command& line) {
  if (!line.json.empty()) require_writable(line.json);
  const auto card = choose_device(line.backend, line.device, read_config(line.original));
  std::vector<language_model> models{open_model(line.original, card)};
  comparison_report report{
      .names = {printable(line.original.string())}, .texts = {}, .figures = {}};
  for (const auto& directory : line.compressed) {
    models.push_back(open_model(directory, card));
    report.names.push_back(printable(directory.string()));
  }
  require_alike(models);
  report.texts = read_texts(line, models.front());
  {
    fraction_progress bar("comparing");
    report.figures = compare_models(models, report.texts, std::ref(bar), card);
  }
  print(report);
  if (!line.json.empty()) write_whole_file(line.json, to_json(report).dump(2) + "\n");
}

} // namespace

void add_compare(CLI::App& app) {
  const auto line = std::make_shared<compare_command>();
  CLI::App* const command = app.add_subcommand(
      "compare",
      "Compare compressed models with the original: parameters, bytes, perplexity, KL divergence,\n"
      "speed of the forward pass, error of the hidden states after each layer. Without a text, on\n"
      "samples that the original writes itself.");
  command->add_option("ORIGINAL", line->original, "Model directory or GGUF file")->required();
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
      ->check(whole_number(2, std::int64_t{1} << 31));
  command->add_option("--max-windows", line->max_windows, "Use only the first so many of a text")
      ->check(whole_number(1));
  command->add_option("--samples", line->samples, "Samples to write where no text is given")
      ->check(whole_number(1))
      ->excludes("--text")
      ->excludes("--tokens")
      ->excludes("--max-windows")
      ->capture_default_str();
  command->add_option("--seed", line->seed, "Of these samples")
      ->excludes("--text")
      ->excludes("--tokens")
      ->capture_default_str();
  add_device_options(*command, line->backend, line->device);
  add_threads_option(*command);
  command->add_option("--json", line->json, "Write a report into this file");
  command->callback([line] { run(*line); });
}

} // namespace ressvd_llm
