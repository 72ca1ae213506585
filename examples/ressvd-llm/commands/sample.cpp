// SPDX-License-Identifier: Apache-2.0
#include "commands/sample.hpp"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "commands/checks.hpp"
#include "commands/threads_option.hpp"
#include "io/error.hpp"
#include "io/output_file.hpp"
#include "model/generation.hpp"
#include "model/language_model.hpp"
#include "ui/progress.hpp"

namespace ressvd_llm {
namespace {

struct sample_command {
  std::filesystem::path model;
  std::filesystem::path output;
  sample_options samples{.count = 256, .length = 2048};
  bool overwrite = false;
};

// Little-endian, `bytes` each.
std::string encoded(const std::vector<std::int32_t>& ids, int bytes) {
  std::string text;
  text.reserve(ids.size() * static_cast<std::size_t>(bytes));
  for (const std::int32_t id : ids) {
    for (int i = 0; i < bytes; ++i)
      text += static_cast<char>(static_cast<std::uint32_t>(id) >> (8 * i) & 0xff);
  }
  return text;
}

int bytes_of_id(const std::filesystem::path& file, std::int64_t vocab) {
  const std::string extension = file.extension().string();
  if (extension == ".u32") return 4;
  if (extension != ".u16") throw usage_error(file.string() + ": expected a name in .u16 or .u32");
  if (vocab > 65536) {
    throw usage_error(file.string() + ": 16 bits do not hold the ids of a vocabulary of " +
                      std::to_string(vocab) + "; use .u32");
  }
  return 2;
}

void run(const sample_command& line) {
  if (!line.overwrite && std::filesystem::exists(line.output)) {
    throw file_error(line.output, "exists already; --overwrite replaces it");
  }
  const language_model model = language_model::open(line.model);
  const int bytes = bytes_of_id(line.output, model.config().vocab);
  require_writable(line.output);
  sample_options options = line.samples;
  options.length = std::min(options.length, model.config().max_positions);
  std::vector<std::int32_t> ids;
  {
    fraction_progress bar("sampling");
    options.progress = std::ref(bar);
    ids = sample_texts(model, options);
  }
  write_whole_file(line.output, encoded(ids, bytes));
  std::printf("%s: %lld samples of %lld tokens\n", line.output.string().c_str(),
              static_cast<long long>(options.count), static_cast<long long>(options.length));
}

} // namespace

void add_sample(CLI::App& app) {
  const auto line = std::make_shared<sample_command>();
  CLI::App* const command = app.add_subcommand(
      "sample",
      "Write samples of a model's own text as token ids. Several runs of compress can share them:\n"
      "--calibration OUT --windows first, with the same --seqlen.");
  command->add_option("MODEL", line->model, "Model directory or GGUF file")->required();
  command->add_option("OUT", line->output, "File to write, .u16 or .u32")->required();
  command->add_option("--samples", line->samples.count, "Samples")
      ->check(whole_number(1))
      ->capture_default_str();
  command
      ->add_option("--seqlen", line->samples.length,
                   "Tokens of a sample, at most the model's context")
      ->check(whole_number(1))
      ->capture_default_str();
  command->add_option("--temperature", line->samples.sampling.temperature, "Of the draws")
      ->check(number(0))
      ->capture_default_str();
  command->add_option("--seed", line->samples.sampling.seed, "Of the draws")->capture_default_str();
  command->add_flag("--overwrite", line->overwrite, "Replace OUT where it exists");
  add_threads_option(*command);
  command->callback([line] { run(*line); });
}

} // namespace ressvd_llm
