// SPDX-License-Identifier: Apache-2.0
#include "commands/table.hpp"

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "io/error.hpp"
#include "io/json_text.hpp"
#include "io/output_file.hpp"
#include "io/paths.hpp"
#include "ui/chart.hpp"
#include "ui/table.hpp"

namespace ressvd_llm {
namespace {

constexpr std::uint64_t largest_report = std::uint64_t{64} << 20;

struct table_command {
  std::vector<std::filesystem::path> reports;
  std::filesystem::path ratio_chart;
  std::filesystem::path search_chart;
};

// What the table shows of one report.
struct run_summary {
  std::string method;
  std::string allocation;
  double ratio = 0;
  std::optional<std::int64_t> last_layers;
  std::int64_t parameters = 0;
  std::int64_t bytes = 0;
  struct loss {
    double original_perplexity = 0;
    double perplexity = 0;
    double divergence = 0;
  };
  std::optional<loss> heldout;
  double seconds = 0;
  std::vector<double> tried; // values of k, with their final-layer errors
  std::vector<double> errors;
};

run_summary read_report(const std::filesystem::path& file) {
  const nlohmann::json json = parse_json(file, read_text(file, largest_report));
  try {
    run_summary run;
    const auto& options = json.at("options");
    run.method = options.at("method").get<std::string>();
    run.allocation = options.at("allocation").get<std::string>();
    run.ratio = json.at("requested_ratio").get<double>();
    run.parameters = json.at("parameters").get<std::int64_t>();
    run.bytes = json.at("bytes").get<std::int64_t>();
    const auto& allocation = json.at("allocation");
    if (allocation.contains("last_layers")) {
      run.last_layers = allocation.at("last_layers").get<std::int64_t>();
    }
    if (allocation.contains("search")) {
      for (const auto& s : allocation.at("search")) {
        run.tried.push_back(s.at("last_layers").get<double>());
        run.errors.push_back(s.at("final_layer_error").get<double>());
      }
    }
    const auto& heldout = json.at("heldout");
    if (!heldout.is_null()) {
      run.heldout = {heldout.at("original_perplexity").get<double>(),
                     heldout.at("compressed_perplexity").get<double>(),
                     heldout.at("divergence").get<double>()};
    }
    for (const auto& stage : json.at("seconds"))
      run.seconds += stage.get<double>();
    return run;
  } catch (const nlohmann::json::exception&) {
    throw file_error(file, "is no report of 'ressvd-llm compress'");
  }
}

void print(const std::vector<run_summary>& runs) {
  std::vector<std::vector<std::string>> rows{
      {"method", "allocation", "ratio", "k", "parameters", "bytes", "perplexity", "KL", "seconds"}};
  for (const run_summary& run : runs) {
    rows.push_back({printable(run.method), printable(run.allocation), cell(run.ratio, 2),
                    run.last_layers ? cell(*run.last_layers) : "-", cell(run.parameters),
                    cell(run.bytes), run.heldout ? cell(run.heldout->perplexity, 3) : "-",
                    run.heldout ? cell(run.heldout->divergence, 5) : "-", cell(run.seconds, 1)});
  }
  std::fputs(to_text(rows, 2).c_str(), stdout);
}

// A line for every method and allocation, and one for the original.
chart perplexity_against_ratio(const std::vector<run_summary>& runs) {
  chart picture{.title = "Held-out perplexity against compression ratio",
                .x_label = "compression ratio",
                .y_label = "perplexity",
                .log_y = true,
                .lines = {}};
  chart_line original{.label = "original", .x = {}, .y = {}, .dashed = true};
  for (const run_summary& run : runs) {
    if (!run.heldout) continue;
    const std::string label = run.method + ", " + run.allocation;
    auto line = picture.lines.begin();
    while (line != picture.lines.end() && line->label != label)
      ++line;
    if (line == picture.lines.end()) {
      line = picture.lines.insert(
          line, {.label = label, .x = {}, .y = {}, .dashed = run.allocation == "last-layers"});
    }
    line->x.push_back(run.ratio);
    line->y.push_back(run.heldout->perplexity);
    original.x.push_back(run.ratio);
    original.y.push_back(run.heldout->original_perplexity);
  }
  picture.lines.push_back(std::move(original));
  return picture;
}

chart error_against_layers(const std::vector<run_summary>& runs) {
  chart picture{.title = "Final-layer error against the number of last layers compressed",
                .x_label = "k",
                .y_label = "final-layer error",
                .y_from_zero = true,
                .lines = {}};
  for (const run_summary& run : runs) {
    if (run.tried.size() < 2) continue;
    picture.lines.push_back({run.method + ", ratio " + cell(run.ratio, 2), run.tried, run.errors});
  }
  return picture;
}

void write_chart(const std::filesystem::path& file, const chart& picture, const char* what) {
  bool any = false;
  for (const chart_line& line : picture.lines)
    any = any || !line.x.empty();
  if (!any) throw usage_error(file.string() + ": no report has " + what);
  write_whole_file(file, to_svg(picture));
}

void run(const table_command& line) {
  std::vector<run_summary> runs;
  for (const auto& file : line.reports)
    runs.push_back(read_report(file));
  print(runs);
  if (!line.ratio_chart.empty()) {
    write_chart(line.ratio_chart, perplexity_against_ratio(runs), "a held-out perplexity");
  }
  if (!line.search_chart.empty()) {
    write_chart(line.search_chart, error_against_layers(runs), "a search over last layers");
  }
}

} // namespace

void add_table(CLI::App& app) {
  const auto line = std::make_shared<table_command>();
  CLI::App* const command =
      app.add_subcommand("table", "Show the reports of several runs of compress side by side");
  command->add_option("REPORT", line->reports, "Files that compress wrote with --json")->required();
  command->add_option("--ratio-chart", line->ratio_chart,
                      "Write an SVG chart of the perplexity against the ratio");
  command->add_option("--search-chart", line->search_chart,
                      "Write an SVG chart of the final-layer error against k");
  command->callback([line] { run(*line); });
}

} // namespace ressvd_llm
