// SPDX-License-Identifier: Apache-2.0
#include "commands/compress.hpp"

#include <array>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "commands/compress_options.hpp"
#include "compress/compress.hpp"
#include "io/error.hpp"
#include "io/output_file.hpp"

namespace ressvd_llm {
namespace {

void print(const compression_report& report) {
  std::printf("%s: %.1f %% of the layers' matrix parameters removed", report.output.c_str(),
              100 * report.achieved_ratio);
  const allocation_report& choice = report.choice;
  if (choice.last_layers) {
    std::printf(", last %lld layers compressed", static_cast<long long>(*choice.last_layers));
  }
  std::printf("\n");
  if (choice.search.size() > 1) {
    std::printf("%6s %12s %18s\n", "k", "layer ratio", "final-layer error");
    for (const last_layers_trial& t : choice.search) {
      std::printf("%6lld %12.4f %18.5f\n", static_cast<long long>(t.last_layers), t.layer_ratio,
                  t.final_layer_error);
    }
  }
  if (report.heldout) {
    std::printf("held-out perplexity %.3f, originally %.3f; KL divergence %.5f\n",
                report.heldout->compressed_perplexity, report.heldout->original_perplexity,
                report.heldout->divergence);
  }
}

std::string shortfall_message(const compression_report& report, const compress_options& options) {
  std::array<char, 200> text{};
  std::snprintf(
      text.data(), text.size(),
      "%.1f %% of the layers' matrix parameters are removed where %.1f %% were asked for; "
      "ranks are multiples of %lld",
      100 * report.achieved_ratio, 100 * (report.achieved_ratio + *report.shortfall),
      static_cast<long long>(options.rank_multiple));
  return text.data();
}

// The report may lie in the output, which is not there yet.
void check_json(const compress_line& line) {
  if (line.json.empty()) return;
  const auto folder = [](const std::filesystem::path& file) {
    return std::filesystem::absolute(file).lexically_normal().parent_path();
  };
  if (folder(line.json) != folder(line.options.output / "")) require_writable(line.json);
}

void run(const CLI::App& command, compress_line& line) {
  resolve(command, line);
  check_json(line);
  std::fprintf(stderr, "%s\n", line.choice.c_str());
  const compression_report report = compress(line.options);
  print(report);
  if (!line.json.empty()) write_whole_file(line.json, to_json(report).dump(2) + "\n");
  if (report.evaluation_error) {
    throw std::runtime_error(
        report.output + " is complete, but its evaluation failed: " + *report.evaluation_error);
  }
  if (report.shortfall) throw unmet_request(shortfall_message(report, line.options));
}

} // namespace

void add_compress(CLI::App& app, std::string resume_command) {
  const auto line = std::make_shared<compress_line>();
  line->options.resume_command = std::move(resume_command);
  CLI::App* const command = app.add_subcommand("compress", "Compress a model into a new directory");
  add_compress_options(*command, *line);
  command->callback([command, line] { run(*command, *line); });
}

} // namespace ressvd_llm
