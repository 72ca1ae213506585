// SPDX-License-Identifier: Apache-2.0
#include "commands/compress.hpp"

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "compress/compress.hpp"
#include "io/checkpoint.hpp"
#include "io/error.hpp"
#include "io/output_file.hpp"
#include "model/parallel.hpp"
#include "ui/chart.hpp"

namespace ressvd_llm {
namespace {

struct command_line {
  compress_options options;
  std::string last_layers = "auto";
  std::string calibration = "self";
  std::string power = "auto";
  std::string allocation;
  std::string type;
  int threads = 0;
};

std::int64_t parse_count(const std::string& text, const char* option) {
  std::size_t end = 0;
  std::int64_t value = 0;
  try {
    value = std::stoll(text, &end);
  } catch (const std::exception&) {
    end = 0;
  }
  if (end != text.size() || value < 1) {
    throw usage_error(std::string(option) + " " + text + ": expected a number from 1 on");
  }
  return value;
}

void resolve(command_line& line) {
  compress_options& o = line.options;
  if (line.calibration != "self") o.calibration = line.calibration;

  static const std::map<std::string, allocation> allocations{
      {"uniform", allocation::uniform},
      {"last-layers", allocation::last_layers},
      {"importance", allocation::importance},
      {"sensitivity", allocation::sensitivity}};
  if (!line.allocation.empty()) {
    o.allocation = allocations.at(line.allocation);
  } else if (o.method == method::adasvd) {
    o.allocation = allocation::importance;
  }
  if (line.last_layers == "all") {
    if (o.allocation == allocation::last_layers) o.allocation = allocation::uniform;
  } else if (line.last_layers != "auto") {
    o.allocation = allocation::last_layers;
    o.last_layers = parse_count(line.last_layers, "--last-layers");
  }
  if (line.power != "auto") {
    std::size_t end = 0;
    try {
      o.power = std::stod(line.power, &end);
    } catch (const std::exception&) {
      end = 0;
    }
    if (end != line.power.size() || !(*o.power >= 0 && *o.power <= 1)) {
      throw usage_error("--power " + line.power + ": expected auto or a number in [0, 1]");
    }
  }
  static const std::map<std::string, dtype> types{
      {"f32", dtype::f32}, {"f16", dtype::f16}, {"bf16", dtype::bf16}};
  if (!line.type.empty()) o.type = types.at(line.type);
  if (line.threads > 0) set_thread_count(line.threads);
}

void print(const nlohmann::ordered_json& report) {
  std::printf("%s: %.1f %% of the layers' matrix parameters removed",
              report["output"].get<std::string>().c_str(),
              100 * report["achieved_ratio"].get<double>());
  const auto& allocation = report["allocation"];
  if (allocation.contains("last_layers")) {
    std::printf(", last %lld layers compressed",
                static_cast<long long>(allocation["last_layers"].get<std::int64_t>()));
  }
  std::printf("\n");
  if (allocation.contains("search") && allocation["search"].size() > 1) {
    std::printf("%6s %12s %18s\n", "k", "layer ratio", "final-layer error");
    for (const auto& s : allocation["search"]) {
      std::printf("%6lld %12.4f %18.5f\n",
                  static_cast<long long>(s["last_layers"].get<std::int64_t>()),
                  s["layer_ratio"].get<double>(), s["final_layer_error"].get<double>());
    }
  }
  const auto& heldout = report["heldout"];
  if (!heldout.is_null()) {
    std::printf("held-out perplexity %.3f, originally %.3f; KL divergence %.5f\n",
                heldout["compressed_perplexity"].get<double>(),
                heldout["original_perplexity"].get<double>(), heldout["divergence"].get<double>());
  }
}

// The final-layer error of every k that was tried.
chart search_chart(const nlohmann::ordered_json& report) {
  chart_line line{.label = report["options"]["method"].get<std::string>(), .x = {}, .y = {}};
  for (const auto& s : report["allocation"]["search"]) {
    line.x.push_back(s["last_layers"].get<double>());
    line.y.push_back(s["final_layer_error"].get<double>());
  }
  return {.title = "Final-layer error against the number of last layers compressed",
          .x_label = "k",
          .y_label = "final-layer error",
          .y_from_zero = true,
          .lines = {std::move(line)}};
}

void add_size(nlohmann::ordered_json& report, const std::filesystem::path& directory) {
  const checkpoint written = checkpoint::open(directory);
  std::int64_t parameters = 0;
  for (const std::string& name : written.names())
    parameters += written.describe(name).elements;
  report["parameters"] = parameters;
  report["bytes"] = written.file_bytes();
}

void run(command_line& line) {
  resolve(line);
  const bool searched = (line.options.allocation == allocation::last_layers ||
                         line.options.allocation == allocation::uniform) &&
                        samples_needed(line.options) > 0;
  if (!line.options.chart.empty() && !searched) {
    throw usage_error(
        "--chart shows the search over last layers; there is none with --allocation " +
        std::string(name_of(line.options.allocation)) +
        (line.options.grams.empty() ? "" : " and --grams"));
  }
  auto report = compress(line.options);
  add_size(report, line.options.output);
  if (!line.options.chart.empty()) {
    write_whole_file(line.options.chart, to_svg(search_chart(report)));
  }
  if (!line.options.json.empty()) {
    write_whole_file(line.options.json, report.dump(2) + "\n");
  }
  print(report);
}

} // namespace

void add_compress(CLI::App& app) {
  const auto line = std::make_shared<command_line>();
  compress_options& o = line->options;
  CLI::App* const command = app.add_subcommand("compress", "Compress a model into a new directory");
  command->add_option("MODEL", o.model, "Model directory")->required();
  command->add_option("OUT", o.output, "Directory to create")->required();

  static const std::map<std::string, method> methods{
      {"svd", method::svd},          {"fwsvd", method::fwsvd},   {"asvd", method::asvd},
      {"svd-llm", method::svd_llm},  {"adasvd", method::adasvd}, {"ressvd", method::ressvd},
      {"tempered", method::tempered}};
  command->add_option("--ratio", o.ratio, "Share of the layers' matrix parameters to remove")
      ->capture_default_str();
  command->add_flag("--count-all", o.count_all,
                    "The ratio is one of all parameters, embeddings and head included");
  command
      ->add_option("--method", o.method,
                   "svd, fwsvd, asvd, svd-llm, adasvd, ressvd or tempered (default ressvd)")
      ->transform(CLI::CheckedTransformer(methods).description(""));
  command
      ->add_option("--last-layers", line->last_layers,
                   "How many last layers to compress: auto (smallest final-layer error), all, "
                   "or a number")
      ->capture_default_str();
  command
      ->add_option("--allocation", line->allocation,
                   "How the ratio is spread: last-layers (default), uniform, importance (default "
                   "of adasvd), sensitivity")
      ->check(CLI::IsMember({"uniform", "last-layers", "importance", "sensitivity"}));
  command->add_option("--step", o.step, "Step of the search over the number of last layers")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command
      ->add_option("--beta", o.beta,
                   "ressvd: residual rank, as a share of the break-even rank mn/(m+n)")
      ->capture_default_str();
  command->add_option("--alpha", o.asvd_alpha, "asvd: exponent of the channel means")
      ->capture_default_str();
  command->add_option("--power", line->power, "tempered: power of the Gram, auto or in [0, 1]")
      ->capture_default_str();
  command->add_option("--fisher", o.fisher, "fwsvd: safetensors file of mean squared gradients");
  command->add_option("--grams", o.grams,
                      "Safetensors file of the Grams of the matrices' inputs, in place of those "
                      "of calibration samples");
  command->add_flag("--update", o.update,
                    "Fit the factors to the inputs that the compressed layers before them produce");
  command
      ->add_option("--update-target", o.update_target,
                   "0: the outputs for those inputs, 1: the original outputs; or a mix")
      ->check(CLI::Range(0.0, 1.0));
  command->add_flag("--retruncate", o.retruncate,
                    "Truncate each matrix anew, fitted to those inputs; half of the target are "
                    "the original outputs unless --update-target says otherwise");
  command->add_option("--ridge", o.ridge, "--retruncate: pull towards the original matrix")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--iterations", o.adasvd_iterations, "adasvd: alternating updates")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--minimum-retention", o.minimum_retention,
                      "importance: share of parameters that an unimportant layer keeps (default "
                      "0.8 of the mean)");

  command
      ->add_option("--calibration", line->calibration,
                   "self (the model writes its samples), or a .txt, .npy, .u16 or .u32 file")
      ->capture_default_str();
  static const std::map<std::string, window_choice> choices{{"random", window_choice::random},
                                                            {"first", window_choice::first}};
  command->add_option("--windows", o.windows, "Windows of a calibration file: random or first ones")
      ->transform(CLI::CheckedTransformer(choices).description(""));
  command->add_option("--samples", o.samples, "Calibration samples")->capture_default_str();
  command->add_option("--seqlen", o.seqlen, "Tokens of a sample, at most the model's context")
      ->capture_default_str();
  command->add_option("--search-samples", o.search_samples, "Samples that judge the last layers")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--heldout-samples", o.heldout_samples, "Samples kept for the evaluation")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--probe-samples", o.probe_samples, "sensitivity: samples of the probes")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();

  command
      ->add_option("--probe-ranks", o.probe_ranks,
                   "sensitivity: ranks at which a matrix is probed; 2 fit a curvature")
      ->check(CLI::Range(1, 2))
      ->capture_default_str();
  command
      ->add_option("--rounds", o.rounds,
                   "sensitivity: rounds of probes, the later ones at the ranks found so far and "
                   "kept only where held-out samples improve")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();

  static const std::map<std::string, backend_choice> backends{{"cpu", backend_choice::cpu},
                                                              {"cuda", backend_choice::cuda}};
  command
      ->add_option("--backend", o.backend,
                   "cpu or cuda: where Grams, factoring and fits run (default cpu)")
      ->transform(CLI::CheckedTransformer(backends).description(""));
  command->add_option("--rank-multiple", o.rank_multiple, "Ranks are multiples of this")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  static const std::map<std::string, output_format> formats{{"factored", output_format::factored},
                                                            {"dense", output_format::dense}};
  command
      ->add_option("--format", o.format,
                   "factored (two matrices in place of one) or dense (their product)")
      ->transform(CLI::CheckedTransformer(formats).description(""));
  command->add_option("--dtype", line->type, "f32, f16 or bf16 (default: the model's own)")
      ->check(CLI::IsMember({"f32", "f16", "bf16"}));
  command->add_option("--seed", o.seed, "Of samples and random windows")->capture_default_str();
  command->add_option("--threads", line->threads, "Threads (default: all)");
  command->add_flag("--resume", o.resume, "Go on from an interrupted run with the same options");
  command->add_option("--json", o.json, "Write a report into this file");
  command->add_option("--chart", o.chart,
                      "Write an SVG chart of the final-layer error against k into this file");
  command->callback([line] { run(*line); });
}

} // namespace ressvd_llm
