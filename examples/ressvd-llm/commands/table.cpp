// SPDX-License-Identifier: Apache-2.0
#include "commands/table.hpp"

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "compress/compression_report.hpp"
#include "io/error.hpp"
#include "io/json_text.hpp"
#include "io/paths.hpp"
#include "ui/table.hpp"

namespace ressvd_llm {
namespace {

constexpr std::uint64_t largest_report = std::uint64_t{64} << 20;

compression_report read_report(const std::filesystem::path& file) {
  const nlohmann::json json = parse_json(file, read_text(file, largest_report));
  try {
    return compression_report_from_json(json);
  } catch (const nlohmann::json::exception&) {
    throw file_error(file, "is no report of 'ressvd-llm compress'");
  }
}

std::vector<std::string> row_of(const compression_report& report) {
  const auto& choice = report.choice;
  const auto& heldout = report.heldout;
  const std::string refit = report.refit();
  return {printable(report.method),
          printable(report.allocation),
          refit.empty() ? "-" : refit,
          cell(report.requested_ratio, 2),
          choice.last_layers ? cell(*choice.last_layers) : "-",
          cell(report.parameters),
          cell(static_cast<std::int64_t>(report.bytes)),
          heldout ? cell(heldout->compressed_perplexity, 3) : "-",
          heldout ? cell(heldout->divergence, 5) : "-",
          cell(report.total_seconds(), 1)};
}

void run(const std::vector<std::filesystem::path>& reports) {
  std::vector<std::vector<std::string>> rows{{"method", "allocation", "fit", "ratio", "k",
                                              "parameters", "bytes", "perplexity", "KL",
                                              "seconds"}};
  for (const auto& file : reports)
    rows.push_back(row_of(read_report(file)));
  std::fputs(to_text(rows, 3).c_str(), stdout);
}

} // namespace

void add_table(CLI::App& app) {
  const auto reports = std::make_shared<std::vector<std::filesystem::path>>();
  CLI::App* const command =
      app.add_subcommand("table", "Show the reports of several runs of compress side by side");
  command->add_option("REPORT", *reports, "Files that compress wrote with --json")->required();
  command->callback([reports] { run(*reports); });
}

} // namespace ressvd_llm
