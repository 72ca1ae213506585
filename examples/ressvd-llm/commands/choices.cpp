// SPDX-License-Identifier: Apache-2.0
#include "commands/choices.hpp"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "commands/checks.hpp"
#include "commands/device_options.hpp"
#include "commands/threads_option.hpp"
#include "io/error.hpp"
#include "io/output_file.hpp"
#include "io/tasks.hpp"
#include "io/tokenizer.hpp"
#include "model/choices.hpp"
#include "model/forward.hpp"
#include "model/language_model.hpp"
#include "ui/progress.hpp"
#include "ui/table.hpp"

namespace ressvd_llm {
namespace {

struct choices_command {
  std::filesystem::path model;
  std::filesystem::path tasks;
  std::int64_t max_length = 0; // 0: the model's context
  std::filesystem::path json;
  backend_choice backend = backend_choice::automatic;
  device_options device;
};

std::vector<continuation> encode_items(const std::vector<choice_item>& items,
                                       const tokenizer& tokens, const model_config& config,
                                       const choices_command& line, std::int64_t max_length) {
  const std::vector<std::int32_t> prefix = prompt_prefix(config, tokens);
  std::vector<std::int32_t> first = prefix;
  if (first.empty() && config.bos) first = {*config.bos};
  if (first.empty() && !config.eos.empty()) first = {config.eos.front()};
  std::vector<continuation> result;
  for (const choice_item& item : items) {
    for (std::size_t i = 0; i < item.choices.size(); ++i) {
      const auto fail = [&](const std::string& what) {
        throw file_error(line.tasks, "task " + printable(item.task) + ", item " +
                                         printable(item.id) + ": " + what);
      };
      try {
        result.push_back(encode_continuation(tokens, prefix, first, item.context_of(i),
                                             item.delimiter + item.choices[i]));
      } catch (const std::invalid_argument& error) {
        fail(error.what());
      }
      if (std::cmp_greater(result.back().text.size(), max_length)) {
        fail("a choice of " + std::to_string(result.back().text.size()) +
             " tokens is longer than the " + std::to_string(max_length) + " of --max-length");
      }
    }
  }
  return result;
}

nlohmann::ordered_json items_to_json(const std::vector<choice_item>& items,
                                     const std::vector<double>& sums) {
  auto result = nlohmann::ordered_json::array();
  auto next = sums.begin();
  for (const choice_item& item : items) {
    const auto end = next + static_cast<std::ptrdiff_t>(item.choices.size());
    result.push_back({{"task", item.task},
                      {"id", item.id},
                      {"answer", item.answer},
                      {"log_probabilities", std::vector<double>(next, end)}});
    next = end;
  }
  return result;
}

nlohmann::ordered_json tasks_to_json(const std::vector<task_result>& tasks) {
  auto result = nlohmann::ordered_json::array();
  for (const task_result& t : tasks) {
    result.push_back({{"task", t.task},
                      {"items", t.plain.items},
                      {"acc", t.plain.value()},
                      {"acc_stderr", t.plain.standard_error()},
                      {"acc_norm", t.by_characters.value()},
                      {"acc_norm_stderr", t.by_characters.standard_error()},
                      {"acc_bytes", t.by_bytes.value()},
                      {"acc_bytes_stderr", t.by_bytes.standard_error()}});
  }
  return result;
}

double average_of(const std::vector<task_result>& tasks, accuracy task_result::*which) {
  double sum = 0;
  for (const task_result& t : tasks)
    sum += (t.*which).value();
  return sum / static_cast<double>(tasks.size());
}

void print(const std::vector<task_result>& tasks) {
  std::vector<std::vector<std::string>> rows{
      {"task", "items", "acc", "stderr", "acc_norm", "stderr", "acc_bytes", "stderr"}};
  for (const task_result& t : tasks) {
    std::vector<std::string> row{printable(t.task), cell(t.plain.items)};
    for (const accuracy& a : {t.plain, t.by_characters, t.by_bytes}) {
      row.push_back(cell(a.value(), 4));
      row.push_back(cell(a.standard_error(), 4));
    }
    rows.push_back(std::move(row));
  }
  if (tasks.size() > 1) {
    rows.push_back({"average", "", cell(average_of(tasks, &task_result::plain), 4), "",
                    cell(average_of(tasks, &task_result::by_characters), 4), "",
                    cell(average_of(tasks, &task_result::by_bytes), 4)});
  }
  std::fputs(to_text(rows).c_str(), stdout);
}

void run(const choices_command& line) {
  if (!line.json.empty()) require_writable(line.json);
  const std::vector<choice_item> items = read_tasks(line.tasks);
  const auto card = choose_device(line.backend, line.device, read_config(line.model));
  const language_model model = open_model(line.model, card);
  const model_config& config = model.config();
  const auto tokens = open_tokenizer(line.model, config);
  const std::int64_t max_length =
      line.max_length == 0 ? config.max_positions : std::min(line.max_length, config.max_positions);
  const auto continuations = encode_items(items, *tokens, config, line, max_length);
  const auto begin = std::chrono::steady_clock::now();
  card_forward_options on_card;
  if (card != nullptr)
    on_card.weight_bytes = room_for_weights(*card, memory_of(*card), config, max_length,
                                            evaluation_options{}.memory_limit);
  const auto engine = make_forward_engine(config, card, on_card);
  std::vector<double> sums;
  {
    fraction_progress bar("choices");
    sums = log_probabilities(model, *engine, continuations,
                             {.max_length = max_length, .evaluation = {.progress = std::ref(bar)}});
  }
  const std::vector<task_result> tasks = score_tasks(items, sums);
  print(tasks);
  if (line.json.empty()) return;
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  const nlohmann::ordered_json report = {
      {"model", line.model.string()},
      {"file", line.tasks.string()},
      {"max_length", max_length},
      {"tasks", tasks_to_json(tasks)},
      {"average",
       {{"acc", average_of(tasks, &task_result::plain)},
        {"acc_norm", average_of(tasks, &task_result::by_characters)},
        {"acc_bytes", average_of(tasks, &task_result::by_bytes)}}},
      {"seconds", seconds},
      {"items", items_to_json(items, sums)}};
  write_whole_file(
      line.json,
      report.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
}

} // namespace

void add_choices(CLI::App& app) {
  const auto line = std::make_shared<choices_command>();
  CLI::App* const command = app.add_subcommand(
      "choices",
      "Measure how often a model finds the right one of several answers likeliest, as\n"
      "lm-evaluation-harness does without examples: by the sum of log-probabilities (acc), and by\n"
      "it divided by the answer's length in characters (acc_norm) or bytes (acc_bytes).");
  command->add_option("MODEL", line->model, "Model directory or GGUF file")->required();
  command->add_option("--tasks", line->tasks, "File of items, one JSON object a line")->required();
  command
      ->add_option("--max-length", line->max_length,
                   "Tokens the model sees at a time (default and most: its context)")
      ->check(whole_number(1));
  add_device_options(*command, line->backend, line->device);
  add_threads_option(*command);
  command->add_option("--json", line->json, "Write a report into this file");
  command->callback([line] { run(*line); });
}

} // namespace ressvd_llm
