// SPDX-License-Identifier: Apache-2.0
#include "commands/perplexity.hpp"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
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
#include "model/evaluation.hpp"
#include "model/forward.hpp"
#include "model/language_model.hpp"
#include "ui/progress.hpp"

namespace ressvd_llm {
namespace {

// The field's window length, for models that reach so far.
constexpr std::int64_t usual_window = 2048;

struct perplexity_command {
  std::filesystem::path model;
  std::filesystem::path text;
  std::filesystem::path tokens;
  window_options windows{.length = 0}; // 0: usual_window or the model's context
  std::int64_t context = 0;
  std::filesystem::path json;
  backend_choice backend = backend_choice::automatic;
  device_options device;
};

// What --json writes.
struct perplexity_report {
  std::string model;
  std::string text;
  window_options windows;
  std::int64_t context = 0;
  perplexity_result result;

  double tokens_per_second() const {
    return static_cast<double>(result.predicted) / result.seconds;
  }
};

nlohmann::ordered_json to_json(const perplexity_report& report) {
  const perplexity_result& result = report.result;
  return {{"model", report.model},
          {"text", report.text},
          {"seqlen", report.windows.length},
          {"overlap", report.windows.overlap},
          {"context", report.context},
          {"windows", result.windows},
          {"predicted_tokens", result.predicted},
          {"mean_loss", result.mean_loss},
          {"perplexity", result.perplexity},
          {"seconds", result.seconds},
          {"tokens_per_second", report.tokens_per_second()}};
}

void print(const perplexity_report& report) {
  const perplexity_result& result = report.result;
  std::printf("perplexity %.4f\n", result.perplexity);
  std::printf(
      "%lld tokens predicted in %lld windows of %lld, overlap %lld; %.1f s, %.0f tokens/s\n",
      static_cast<long long>(result.predicted), static_cast<long long>(result.windows),
      static_cast<long long>(report.windows.length), static_cast<long long>(report.windows.overlap),
      result.seconds, report.tokens_per_second());
}

void print_size(const char* what, std::uint64_t bytes) {
  std::fprintf(stderr, "%s: %.0f MiB\n", what, static_cast<double>(bytes) / (1 << 20));
}

// The engine, with the card's memory shared out between states, which may have to take turns, and
// matrices, which stay as far as there is room.
std::unique_ptr<forward_engine> make_engine(const perplexity_command& line,
                                            const model_config& config,
                                            const std::shared_ptr<device>& card,
                                            const token_windows& windows,
                                            evaluation_options& options) {
  if (card == nullptr) return make_forward_engine(config, card);
  card_forward_options of_card;
  const dtype type = precision_of(config, line.device);
  const std::uint64_t available = memory_of(*card);
  card_memory memory =
      estimate_card_memory(config, type, windows.count, windows.length, 1, of_card);
  const std::uint64_t fixed = memory.buffers + memory.layers;
  const std::uint64_t rest = available > fixed ? available - fixed : 0;
  const std::uint64_t of_window = memory.states / static_cast<std::uint64_t>(windows.count);
  memory.states = std::min(memory.states, std::max(rest / 2, of_window));
  options.memory_limit = memory.states;
  of_card.weight_bytes = std::min(memory.weights, rest > memory.states ? rest - memory.states : 0);
  print_size("estimated peak device memory", memory.least() + of_card.weight_bytes);
  return make_forward_engine(config, card, of_card);
}

void run(const perplexity_command& line) {
  if (!line.json.empty()) require_writable(line.json);
  const auto card = choose_device(line.backend, line.device, read_config(line.model));
  const language_model model = open_model(line.model, card);
  const model_config& config = model.config();
  const std::filesystem::path& file = line.text.empty() ? line.tokens : line.text;
  std::unique_ptr<tokenizer> text;
  if (!holds_token_ids(file)) text = open_tokenizer(line.model, config);
  const std::vector<std::int32_t> ids = read_tokens(file, config.vocab, text.get());

  window_options windows = line.windows;
  if (windows.length == 0) windows.length = std::min(usual_window, config.max_positions);
  require_window(file, ids, windows.length + windows.overlap);
  require_context(config, windows.length, "--seqlen " + std::to_string(windows.length));
  if (line.context >= windows.length - 1 + windows.overlap) {
    throw usage_error("--context " + std::to_string(line.context) + " leaves windows of " +
                      std::to_string(windows.length) + " tokens nothing to be judged by");
  }

  evaluation_options options{.context = line.context};
  const token_windows cut = cut_windows(ids, windows);
  const auto engine = make_engine(line, config, card, cut, options);
  perplexity_report report{line.model.string(), file.string(), windows, line.context, {}};
  {
    fraction_progress bar("perplexity");
    options.progress = std::ref(bar);
    report.result = perplexity(model, *engine, cut, options);
  }
  print(report);
  if (card != nullptr) print_size("peak device memory", peak_memory_of(*card));
  if (!line.json.empty()) write_whole_file(line.json, to_json(report).dump(2) + "\n");
}

} // namespace

void add_perplexity(CLI::App& app) {
  const auto line = std::make_shared<perplexity_command>();
  CLI::App* const command = app.add_subcommand(
      "perplexity",
      "Measure how well a model predicts a text: exp of the mean negative log-likelihood.\n"
      "The text's tokens are cut into windows of L, one after the other, the tail dropped; each\n"
      "window predicts its last L - 1 tokens from those before them.");
  command->add_option("MODEL", line->model, "Model directory or GGUF file")->required();
  CLI::Option_group* const input = command->add_option_group("Text");
  input->add_option("--text", line->text, "Text file (.txt)");
  input->add_option("--tokens", line->tokens, "Token ids (.npy, .u16, .u32)");
  input->require_option(1);
  command
      ->add_option("--seqlen", line->windows.length,
                   "Window length L (default: 2048, or the model's context where it is shorter)")
      ->check(whole_number(2, std::int64_t{1} << 31));
  command
      ->add_option("--overlap", line->windows.overlap,
                   "1: each window also holds the first token of the next and predicts L tokens")
      ->check(whole_number(0, 1))
      ->capture_default_str();
  command
      ->add_option("--context", line->context,
                   "The first so many predictions of each window do not count; L/2: as "
                   "llama-perplexity counts")
      ->check(whole_number(0))
      ->capture_default_str();
  command->add_option("--max-windows", line->windows.max_windows, "Use only the first so many")
      ->check(whole_number(1));
  add_device_options(*command, line->backend, line->device);
  add_threads_option(*command);
  command->add_option("--json", line->json, "Write a report into this file");
  command->callback([line] { run(*line); });
}

} // namespace ressvd_llm
