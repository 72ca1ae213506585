// SPDX-License-Identifier: Apache-2.0
#include "commands/compress.hpp"

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <ressvd/methods/any_method.hpp>

#include "commands/threads_option.hpp"
#include "compress/compress.hpp"
#include "io/error.hpp"
#include "io/output_file.hpp"

namespace ressvd_llm {
namespace {

struct command_line {
  compress_options options;
  std::string last_layers = "auto";
  std::string calibration = "self";
  std::string power = "auto";
  std::string allocation;
  std::string type;
  std::filesystem::path json;
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
  } else if (o.method == "adasvd") {
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
}

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

// The report may lie in the output, which is not there yet.
void check_json(const command_line& line) {
  if (line.json.empty()) return;
  const auto folder = [](const std::filesystem::path& file) {
    return std::filesystem::absolute(file).lexically_normal().parent_path();
  };
  if (folder(line.json) != folder(line.options.output / "")) require_writable(line.json);
}

void run(command_line& line) {
  resolve(line);
  check_json(line);
  const compression_report report = compress(line.options);
  print(report);
  if (!line.json.empty()) write_whole_file(line.json, to_json(report).dump(2) + "\n");
  if (report.evaluation_error) {
    throw std::runtime_error(
        report.output + " is complete, but its evaluation failed: " + *report.evaluation_error);
  }
}

} // namespace

void add_compress(CLI::App& app, std::string resume_command) {
  const auto line = std::make_shared<command_line>();
  line->options.resume_command = std::move(resume_command);
  compress_options& o = line->options;
  CLI::App* const command = app.add_subcommand("compress", "Compress a model into a new directory");
  command->add_option("MODEL", o.model, "Model directory")->required();
  command->add_option("OUT", o.output, "Directory to create")->required();

  command->add_option("--ratio", o.ratio, "Share of the layers' matrix parameters to remove")
      ->capture_default_str();
  command->add_flag("--count-all", o.count_all,
                    "The ratio is one of all parameters, embeddings and head included");
  command
      ->add_option("--method", o.method,
                   "svd, fwsvd, asvd, svd-llm, adasvd, ressvd or tempered (default ressvd)")
      ->check(CLI::Validator(
          [](std::string& name) {
            try {
              ressvd::method_named(name);
            } catch (const std::invalid_argument& error) {
              return std::string(error.what());
            }
            return std::string();
          },
          ""));
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
  add_threads_option(*command);
  command->add_flag("--resume", o.resume, "Go on from an interrupted run with the same options");
  command->add_option("--json", line->json, "Write a report into this file");
  command->callback([line] { run(*line); });
}

} // namespace ressvd_llm
