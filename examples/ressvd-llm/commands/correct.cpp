// SPDX-License-Identifier: Apache-2.0
#include "commands/correct.hpp"

#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "commands/checks.hpp"
#include "commands/compress_options.hpp"
#include "commands/threads_option.hpp"
#include "compress/correct.hpp"
#include "io/output_file.hpp"

namespace ressvd_llm {
namespace {

struct correct_line {
  correct_options options;
  compress_line samples; // its options are those of the run
  std::filesystem::path json;
};

void run(const CLI::App& command, correct_line& line) {
  if (!line.json.empty()) require_writable(line.json);
  resolve_samples(command, line.samples);
  line.options.run = line.samples.options;
  const correction_report report = correct(line.options);
  print(report);
  if (!line.json.empty()) write_whole_file(line.json, to_json(report).dump(2) + "\n");
}

} // namespace

void print(const correction_report& report) {
  std::printf("%s: %zu matrices corrected, %llu bytes\n", report.output.c_str(),
              report.matrices.size(), static_cast<unsigned long long>(report.bytes));
  if (!report.heldout.empty()) {
    const auto& h = report.heldout;
    std::printf("held-out perplexity %.3f, originally %.3f, without the correction %.3f\n",
                h[2].perplexity, h[0].perplexity, h[1].perplexity);
    std::printf("KL divergence %.5f, without the correction %.5f\n", h[2].divergence,
                h[1].divergence);
  }
}

void add_correct(CLI::App& app) {
  const auto line = std::make_shared<correct_line>();
  compress_options& o = line->samples.options;
  o.method = "svd-llm";
  CLI::App* const command = app.add_subcommand(
      "correct",
      "Make a LoRA adapter for llama.cpp that takes a quantised GGUF file closer to its original");
  command->add_option("MODEL", line->options.base, "The quantised GGUF file")->required();
  command->add_option("OUT", o.output, "The adapter, a GGUF file to write")->required();
  command
      ->add_option("--original", o.model,
                   "Model directory or GGUF file that the quantised one was made of")
      ->required();
  command->add_option("--rank", line->options.rank, "Of every matrix's correction")
      ->check(whole_number(1))
      ->capture_default_str();
  add_choice(*command, "--dtype", o.type, {{"f32", dtype::f32}, {"f16", dtype::f16}},
             "Type of the adapter's tensors (default f32)")
      ->group("Output");
  add_sample_options(*command, line->samples);
  add_machine_options(*command, line->samples);
  command->add_option("--json", line->json, "Write a report into this file")->group("Output");
  command->callback([command, line] { run(*command, *line); });
}

} // namespace ressvd_llm
