// SPDX-License-Identifier: Apache-2.0
#include "commands/generate.hpp"

#include <chrono>
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
#include "commands/threads_option.hpp"
#include "io/error.hpp"
#include "io/output_file.hpp"
#include "io/tokenizer.hpp"
#include "io/tokens.hpp"
#include "model/generation.hpp"
#include "model/language_model.hpp"
#include "ui/progress.hpp"

namespace ressvd_llm {
namespace {

struct generate_command {
  std::filesystem::path model;
  std::string prompt;
  std::filesystem::path prompt_tokens;
  generation_options options{.sampling = {.temperature = 0.8}};
  bool no_bos = false;
  bool ignore_eos = false;
  std::filesystem::path json;
};

std::vector<std::int32_t> read_prompt(const generate_command& line, const model_config& config,
                                      const tokenizer* text) {
  if (text == nullptr) {
    std::vector<std::int32_t> ids = read_tokens(line.prompt_tokens, config.vocab, nullptr);
    if (ids.empty()) throw file_error(line.prompt_tokens, "holds no tokens");
    return ids;
  }
  std::vector<std::int32_t> ids;
  if (!line.no_bos) ids = prompt_prefix(config, *text);
  const std::vector<std::int32_t> prompt = text->encode(line.prompt);
  ids.insert(ids.end(), prompt.begin(), prompt.end());
  if (ids.empty() && config.bos) ids.push_back(*config.bos);
  if (ids.empty()) throw usage_error("--prompt: the prompt has no tokens");
  return ids;
}

void run(const CLI::App& command, const generate_command& line) {
  if (line.options.sampling.temperature == 0) {
    for (const char* option : {"--top-k", "--seed"}) {
      if (command.get_option(option)->count() > 0)
        throw usage_error(std::string(option) + " has no effect with --temperature 0");
    }
  }
  if (!line.json.empty()) require_writable(line.json);
  const language_model model = language_model::open(line.model);
  const model_config& config = model.config();
  std::unique_ptr<tokenizer> text;
  if (line.prompt_tokens.empty()) text = open_tokenizer(line.model, config);
  const std::vector<std::int32_t> prompt = read_prompt(line, config, text.get());

  // The last token is drawn, but not read again.
  require_context(config, static_cast<std::int64_t>(prompt.size()) + line.options.tokens - 1,
                  "a prompt of " + std::to_string(prompt.size()) + " tokens and --tokens " +
                      std::to_string(line.options.tokens));

  generation_options options = line.options;
  if (!line.ignore_eos && !config.byte_tokens) options.stop = config.eos;
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::int32_t> ids;
  {
    fraction_progress bar("generating");
    options.progress = std::ref(bar);
    ids = generate(model, prompt, options);
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;

  nlohmann::ordered_json report{{"model", line.model.string()},
                                {"temperature", options.sampling.temperature},
                                {"seed", options.sampling.seed},
                                {"prompt_tokens", prompt},
                                {"tokens", ids},
                                {"seconds", seconds.count()}};
  if (options.sampling.top_k > 0) report["top_k"] = options.sampling.top_k;
  if (text != nullptr) {
    // Decoded together: a tokenizer may drop the space that a text begins with.
    std::vector<std::int32_t> all = prompt;
    all.insert(all.end(), ids.begin(), ids.end());
    const std::string whole = text->decode(all);
    std::printf("%s\n", whole.c_str());
    report["text"] = whole;
  } else {
    for (std::size_t i = 0; i < ids.size(); ++i)
      std::printf(i == 0 ? "%d" : " %d", ids[i]);
    std::printf("\n");
  }
  if (line.json.empty()) return;
  // A sampled byte sequence need not be UTF-8.
  write_whole_file(line.json,
                   report.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

} // namespace

void add_generate(CLI::App& app) {
  const auto line = std::make_shared<generate_command>();
  CLI::App* const command = app.add_subcommand("generate", "Continue a prompt");
  command->add_option("MODEL", line->model, "Model directory or GGUF file")->required();
  CLI::Option_group* const input = command->add_option_group("Prompt");
  input->add_option("--prompt", line->prompt, "Text to continue");
  input->add_option("--prompt-tokens", line->prompt_tokens,
                    "Token ids to continue (.npy, .u16, .u32); token ids are printed");
  input->require_option(1);
  sampling_options& sampling = line->options.sampling;
  command->add_option("--tokens", line->options.tokens, "Tokens to write at most")
      ->check(whole_number(1))
      ->capture_default_str();
  command->add_option("--temperature", sampling.temperature, "0: always the likeliest token")
      ->check(number(0))
      ->capture_default_str();
  command->add_option("--top-k", sampling.top_k, "Draw among the so many likeliest; 0: among all")
      ->check(whole_number(0))
      ->capture_default_str();
  command->add_option("--seed", sampling.seed, "Of the draws")->capture_default_str();
  command
      ->add_flag("--no-bos", line->no_bos, "Put no beginning-of-sequence token before the prompt")
      ->excludes("--prompt-tokens");
  command->add_flag("--ignore-eos", line->ignore_eos, "Go on after an end-of-sequence token");
  add_threads_option(*command);
  command->add_option("--json", line->json, "Write a report into this file");
  command->callback([command, line] { run(*command, *line); });
}

} // namespace ressvd_llm
