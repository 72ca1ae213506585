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
#include "commands/correct.hpp"
#include "compress/compress.hpp"
#include "compress/correct.hpp"
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
  if (report.refinement) std::printf("%s\n", summary_of(*report.refinement).c_str());
  if (report.heldout) {
    std::printf("held-out perplexity %.3f, originally %.3f; KL divergence %.5f\n",
                report.heldout->compressed_perplexity, report.heldout->original_perplexity,
                report.heldout->divergence);
  }
  if (report.without_tokenizer) {
    std::printf("%s has no tokenizer: it reads and writes token ids\n", report.output.c_str());
  }
}

std::string missed_ratio(double removed, double asked, std::int64_t rank_multiple) {
  std::array<char, 200> text{};
  std::snprintf(
      text.data(), text.size(),
      "%.1f %% of the layers' matrix parameters are removed where %.1f %% were asked for; "
      "ranks are multiples of %lld",
      100 * removed, 100 * asked, static_cast<long long>(rank_multiple));
  return text.data();
}

// The report may lie in the output, which is not there yet, under a name that no part of a
// checkpoint has.
void check_json(const compress_line& line) {
  namespace fs = std::filesystem;
  if (line.json.empty()) return;
  const auto whole = [](const fs::path& file) {
    const fs::path normal = fs::absolute(file).lexically_normal();
    return fs::weakly_canonical(normal.has_filename() ? normal : normal.parent_path());
  };
  const fs::path json = whole(line.json);
  const fs::path model = whole(line.options.model);
  const auto refuse = [&](const std::string& why) {
    throw usage_error("--json " + line.json.string() + ": " + why);
  };
  const auto belongs_to_checkpoint = [&](const fs::path& name) {
    return name == "config.json" || name == "model.safetensors.index.json" ||
           name.extension() == ".safetensors" || fs::exists(model / name);
  };
  const bool adapter = line.options.format == output_format::gguf_adapter;
  if (json == whole(line.options.output) ||
      (adapter && json == whole(adapter_beside(line.options.output)))) {
    refuse("this is the output itself");
  }
  if (json.parent_path() == model && fs::exists(json)) refuse("a file of the model");
  const bool directory =
      line.options.format == output_format::factored || line.options.format == output_format::dense;
  if (directory && json.parent_path() == whole(line.options.output)) {
    if (belongs_to_checkpoint(json.filename())) refuse("a name of the checkpoint's own");
  } else {
    require_writable(line.json);
  }
}

void run(const CLI::App& command, compress_line& line) {
  resolve(command, line);
  check_json(line);
  std::fprintf(stderr, "%s\n", line.choice.c_str());
  if (line.options.format == output_format::gguf_adapter) {
    const correction_report report = quantise_and_correct(line.options, line.rank);
    print(report);
    if (!line.json.empty()) write_whole_file(line.json, to_json(report).dump(2) + "\n");
    return;
  }
  const compression_report report = compress(line.options);
  print(report);
  if (!line.json.empty()) write_whole_file(line.json, to_json(report).dump(2) + "\n");
  if (report.evaluation_error) {
    throw std::runtime_error(
        report.output + " is complete, but its evaluation failed: " + *report.evaluation_error);
  }
  const auto missed = [&](double asked) {
    return missed_ratio(report.achieved_ratio, asked, line.options.rank_multiple);
  };
  if (report.shortfall) throw unmet_request(missed(report.achieved_ratio + *report.shortfall));
  constexpr double much = 0.02;
  if (!line.options.count_all && report.achieved_ratio > line.options.ratio + much)
    std::fprintf(stderr, "ressvd-llm: %s\n", missed(line.options.ratio).c_str());
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
