// SPDX-License-Identifier: Apache-2.0
#include "commands/table.hpp"

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <ressvd/layer_ratio/rank_choice.hpp>

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
  std::filesystem::path rank_chart;
};

// What a matrix keeps of its parameters; 1 when it is dense.
struct kept_share {
  std::int64_t layer = 0;
  std::string module; // q_proj, fc1, …
  double share = 1;
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
  std::vector<kept_share> kept;
};

// Of an entry of the report's matrices, named "….layers.7.….q_proj".
kept_share kept_of(const nlohmann::json& matrix) {
  const auto name = matrix.at("name").get<std::string>();
  const std::string_view marker = "layers.";
  const auto at = name.find(marker);
  kept_share kept{.layer = 0, .module = printable(name.substr(name.rfind('.') + 1)), .share = 1};
  if (at != std::string::npos) {
    const char* const digits = name.data() + at + marker.size();
    std::from_chars(digits, name.data() + name.size(), kept.layer);
  }
  if (!matrix.at("rank").is_null()) {
    kept.share = 1 - ressvd::achieved_ratio(matrix.at("rows").get<std::int64_t>(),
                                            matrix.at("cols").get<std::int64_t>(),
                                            {.rank = matrix.at("rank").get<std::int64_t>()});
  }
  return kept;
}

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
    for (const auto& matrix : json.at("matrices"))
      run.kept.push_back(kept_of(matrix));
    return run;
  } catch (const nlohmann::json::exception&) {
    throw file_error(file, "is no report of 'ressvd-llm compress'");
  } catch (const std::invalid_argument&) { // shapes and ranks that contradict each other
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

// A line for every kind of matrix.
chart kept_against_layer(const run_summary& run) {
  chart picture{.title = "What each matrix keeps: " + run.method + ", " + run.allocation +
                         ", ratio " + cell(run.ratio, 2),
                .x_label = "layer",
                .y_label = "share of its parameters",
                .y_from_zero = true,
                .lines = {}};
  for (const kept_share& kept : run.kept) {
    auto line = std::find_if(picture.lines.begin(), picture.lines.end(),
                             [&](const chart_line& l) { return l.label == kept.module; });
    if (line == picture.lines.end()) {
      line = picture.lines.insert(line, {.label = kept.module, .x = {}, .y = {}});
    }
    line->x.push_back(static_cast<double>(kept.layer));
    line->y.push_back(kept.share);
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
  if (!line.rank_chart.empty()) {
    write_chart(line.rank_chart, kept_against_layer(runs.front()), "matrices");
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
  command->add_option("--rank-chart", line->rank_chart,
                      "Write an SVG chart of what each matrix of the first report keeps");
  command->callback([line] { run(*line); });
}

} // namespace ressvd_llm
