// SPDX-License-Identifier: Apache-2.0
#include "commands/refine.hpp"

#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "commands/checks.hpp"
#include "commands/compress_options.hpp"
#include "commands/threads_option.hpp"
#include "compress/refine.hpp"
#include "io/error.hpp"
#include "io/output_file.hpp"

namespace ressvd_llm {
namespace {

struct refine_line {
  refine_run options;
  compress_line line; // its options are those of the run
  std::filesystem::path json;
};

void run(const CLI::App& command, refine_line& line) {
  if (!line.json.empty()) require_writable(line.json);
  if (!refines(line.line.options)) throw usage_error("--refine 0 leaves nothing to do");
  resolve_samples(command, line.line);
  line.options.run = line.line.options;
  const refine_report report = refine(line.options);
  std::printf("%s: %s\n", report.output.c_str(), summary_of(report.refinement).c_str());
  if (!report.heldout.empty()) {
    const auto& h = report.heldout;
    std::printf("held-out perplexity %.3f, originally %.3f, before %.3f\n", h[2].perplexity,
                h[0].perplexity, h[1].perplexity);
    std::printf("KL divergence %.5f, before %.5f\n", h[2].divergence, h[1].divergence);
  }
  if (!line.json.empty()) write_whole_file(line.json, to_json(report).dump(2) + "\n");
}

} // namespace

void add_refine(CLI::App& app) {
  const auto line = std::make_shared<refine_line>();
  compress_options& o = line->line.options;
  o.method = "svd";
  o.refine.epochs = 4;
  CLI::App* const command = app.add_subcommand(
      "refine", "Train the factors of a compressed checkpoint on the original's blocks");
  command->add_option("MODEL", o.model, "The original: model directory or GGUF file")->required();
  command->add_option("COMPRESSED", line->options.compressed, "What compress made of it")
      ->required();
  command->add_option("OUT", o.output, "Directory to create")->required();
  add_refine_options(*command, line->line);
  add_sample_options(*command, line->line);
  add_choice(*command, "--dtype", o.type,
             {{"f32", dtype::f32}, {"f16", dtype::f16}, {"bf16", dtype::bf16}},
             "Type of the tensors (default: those of the compressed checkpoint)")
      ->group("Output");
  command->add_option("--json", line->json, "Write a report into this file")->group("Output");
  command->add_flag("--resume", o.resume, "Go on from an interrupted run with the same options")
      ->group("Output");
  add_threads_option(*command)->group("Machine");
  command->callback([command, line] { run(*command, *line); });
}

} // namespace ressvd_llm
