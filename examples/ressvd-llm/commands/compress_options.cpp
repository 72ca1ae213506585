// SPDX-License-Identifier: Apache-2.0
#include "commands/compress_options.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <exception>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>

#include <ressvd/methods/any_method.hpp>

#include "commands/checks.hpp"
#include "commands/device_options.hpp"
#include "commands/threads_option.hpp"
#include "io/error.hpp"

namespace ressvd_llm {
namespace {

constexpr std::array presets{
    preset{"best", "kfac-svd", allocation::fisher, true, 0.6, 0.25, true, 4,
           "the closest to the original (docs/results.md); --preset fast takes a fraction of the "
           "time"},
    preset{"fast", "kfac-svd", allocation::fisher, false, 0.6, 0.25, false, 0,
           "without fits; --preset best is closer to the original"},
    preset{"ressvd", "ressvd", allocation::last_layers, false, 1, 1, false, 0,
           "as in arXiv 2505.20112 with --form pair"},
    preset{"svd-llm", "svd-llm", allocation::uniform, false, 1, 1, false, 0,
           "as in arXiv 2403.07378 with --form pair"}};

bool retruncates(const compress_options& o) {
  return o.method == "svd-llm" || o.method == "tempered" || o.method == "kfac-svd";
}

bool makes_adapter(const compress_line& line) {
  return line.options.format == output_format::gguf_adapter;
}

bool by_kfac(const compress_line& line) {
  return line.options.method == "kfac-svd";
}

bool takes_gradients(const compress_line& line) {
  return needs_curvature(line.options);
}

bool searches_layers(const compress_options& o) {
  return o.allocation == allocation::last_layers && !o.last_layers;
}

bool may_use_card(const compress_line& line) {
  return line.options.backend != backend_choice::cpu;
}
bool by_refinement(const compress_line& line) {
  return refines(line.options);
}

bool by_sensitivity(const compress_line& line) {
  return line.options.allocation == allocation::sensitivity;
}

// Whether any samples are drawn: Grams from a file may leave nothing to do for them.
bool draws_samples(const compress_line& line) {
  return samples_needed(line.options) + line.options.heldout_samples > 0;
}

// Which options go together: an option that `applies` denies has no effect on the run.
struct option_rule {
  const char* option;
  const char* goes_with;
  bool (*applies)(const compress_line&);
};

constexpr std::array rules{
    // Ranks that no candidate has would need the curvature again.
    option_rule{"--beta",
                "--method ressvd, or kfac-svd with --allocation uniform or last-layers and without "
                "--retruncate",
                [](const compress_line& l) {
                  return l.options.method == "ressvd" ||
                         (by_kfac(l) && !l.options.retruncate &&
                          (l.options.allocation == allocation::uniform ||
                           l.options.allocation == allocation::last_layers));
                }},
    option_rule{"--alpha", "--method asvd",
                [](const compress_line& l) { return l.options.method == "asvd"; }},
    option_rule{"--power", "--method tempered",
                [](const compress_line& l) { return l.options.method == "tempered"; }},
    option_rule{"--fisher", "--method fwsvd",
                [](const compress_line& l) { return l.options.method == "fwsvd"; }},
    option_rule{"--input-power", "--method kfac-svd", by_kfac},
    option_rule{"--output-power", "--method kfac-svd", by_kfac},
    option_rule{"--curvature-ridge", "--method kfac-svd or --allocation fisher",
                [](const compress_line& l) {
                  return by_kfac(l) || l.options.allocation == allocation::fisher;
                }},
    option_rule{"--gradients", "--method kfac-svd or fwsvd, or --allocation fisher",
                takes_gradients},
    option_rule{"--labels", "--method kfac-svd or fwsvd, or --allocation fisher",
                [](const compress_line& l) { return samples_of_curvature(l.options) > 0; }},
    option_rule{"--curvature-samples", "--method kfac-svd or fwsvd, or --allocation fisher",
                [](const compress_line& l) { return samples_of_curvature(l.options) > 0; }},
    option_rule{"--iterations", "--method adasvd",
                [](const compress_line& l) { return l.options.method == "adasvd"; }},
    option_rule{"--update", "every method but adasvd, which always updates",
                [](const compress_line& l) { return l.options.method != "adasvd"; }},
    option_rule{"--retruncate", "--method svd-llm, tempered or kfac-svd",
                [](const compress_line& l) { return retruncates(l.options); }},
    option_rule{"--update-target", "--update, --retruncate or --method adasvd",
                [](const compress_line& l) { return refits(l.options); }},
    option_rule{"--ridge", "--retruncate",
                [](const compress_line& l) { return l.options.retruncate; }},
    option_rule{"--last-layers", "--allocation last-layers",
                [](const compress_line& l) {
                  return l.options.allocation == allocation::last_layers ||
                         (l.options.allocation == allocation::uniform && l.last_layers == "all");
                }},
    option_rule{"--step", "--last-layers auto",
                [](const compress_line& l) { return searches_layers(l.options); }},
    option_rule{"--search-samples", "--last-layers auto or --allocation fisher",
                [](const compress_line& l) {
                  return searches_layers(l.options) || l.options.allocation == allocation::fisher;
                }},
    option_rule{
        "--minimum-retention", "--allocation importance",
        [](const compress_line& l) { return l.options.allocation == allocation::importance; }},
    option_rule{"--probe-samples", "--allocation sensitivity", by_sensitivity},
    option_rule{"--probe-ranks", "--allocation sensitivity", by_sensitivity},
    option_rule{"--rounds", "--allocation sensitivity or fisher",
                [](const compress_line& l) {
                  return by_sensitivity(l) || l.options.allocation == allocation::fisher;
                }},
    option_rule{"--refine-samples", "--refine", by_refinement},
    option_rule{"--refine-batch", "--refine", by_refinement},
    option_rule{"--refine-rate", "--refine", by_refinement},
    option_rule{"--refine-decay", "--refine", by_refinement},
    option_rule{"--refine-anchor", "--refine", by_refinement},
    option_rule{"--refine-patience", "--refine", by_refinement},
    option_rule{"--refine-dense", "--refine", by_refinement},
    option_rule{"--refine-norms", "--refine", by_refinement},
    option_rule{"--samples", "what needs samples beside --grams", draws_samples},
    option_rule{"--seqlen", "what needs samples beside --grams", draws_samples},
    option_rule{"--calibration", "what needs samples beside --grams", draws_samples},
    option_rule{"--kernel-cache", "--backend cuda", may_use_card},
    option_rule{"--device-memory", "--backend cuda", may_use_card},
    option_rule{"--precision", "--backend cuda", may_use_card},
    option_rule{
        "--self-samples", "--calibration FILE",
        [](const compress_line& l) { return !l.options.calibration.empty() && draws_samples(l); }},
    option_rule{"--windows", "--calibration FILE",
                [](const compress_line& l) { return !l.options.calibration.empty(); }},
    option_rule{"--seed", "the model's own samples, --windows random, drawn labels and --refine",
                [](const compress_line& l) {
                  return refines(l.options) || samples_of_curvature(l.options) > 0 ||
                         (draws_samples(l) &&
                          (l.options.calibration.empty() || l.options.self_samples > 0 ||
                           l.options.windows == window_choice::random));
                }}};

// Method, allocation and fit as options would state them.
std::string stated(const compress_options& o) {
  std::string text = "--method " + o.method;
  const bool fixed = o.allocation == allocation::last_layers && o.last_layers;
  text += fixed ? " --last-layers " + std::to_string(*o.last_layers)
                : std::string(" --allocation ") + name_of(o.allocation);
  if (o.retruncate) text += " --retruncate";
  if (o.update) text += " --update";
  if (o.self_samples > 0) text += " --self-samples " + std::to_string(o.self_samples);
  if (refines(o)) text += " --refine " + std::to_string(o.refine.epochs);
  return text;
}

std::int64_t parse_count(const std::string& text, const char* option) {
  std::size_t end = 0;
  std::int64_t value = 0;
  try {
    value = std::stoll(text, &end);
  } catch (const std::exception&) {
    end = 0;
  }
  if (end != text.size() || value < 1) {
    throw usage_error(std::string(option) + " " + text +
                      ": expected auto, all or a number from 1 on");
  }
  return value;
}

double parse_power(const std::string& text) {
  std::size_t end = 0;
  double value = 0;
  try {
    value = std::stod(text, &end);
  } catch (const std::exception&) {
    end = 0;
  }
  if (end != text.size() || !(value >= 0 && value <= 1)) {
    throw usage_error("--power " + text + ": expected auto or a number in [0, 1]");
  }
  return value;
}

void add_choices_of_method(CLI::App& command, compress_line& line) {
  compress_options& o = line.options;
  std::vector<std::pair<std::string, const preset*>> named;
  for (const preset& p : presets)
    named.emplace_back(p.name, &p);
  add_choice(command, "--preset", line.preset, named,
             "best: closest to the original (default where no --method is named); fast: a quarter "
             "of its time; ressvd and svd-llm: as in the papers. Other options replace its parts")
      ->group("Presets");

  const std::string group = "Method and ratio";
  command
      .add_option("--ratio", o.ratio,
                  "Share of the layers' matrix parameters to remove; exit status 3 where no ranks "
                  "reach it")
      ->check(share_below_one())
      ->capture_default_str()
      ->group(group);
  command
      .add_flag("--count-all", o.count_all,
                "The ratio is one of all parameters, embeddings and head included")
      ->group(group);
  const auto known = [](const std::string& name) {
    try {
      ressvd::method_named(name);
    } catch (const std::invalid_argument& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  command
      .add_option("--method", o.method,
                  "svd, fwsvd, asvd, svd-llm, adasvd, ressvd, tempered or kfac-svd (default: the "
                  "preset's)")
      ->check(CLI::Validator(known, ""))
      ->group(group);
  add_choice(command, "--allocation", line.allocation,
             {{"uniform", allocation::uniform},
              {"last-layers", allocation::last_layers},
              {"importance", allocation::importance},
              {"sensitivity", allocation::sensitivity},
              {"fisher", allocation::fisher}},
             "How the ratio is spread (default: the preset's; where only a method is named "
             "last-layers, for adasvd importance)")
      ->group(group);
  command
      .add_flag(
          "--retruncate", o.retruncate,
          "svd-llm, tempered, kfac-svd: truncate each matrix anew, fitted to the inputs that the "
          "compressed layers before it produce")
      ->group(group);
  command
      .add_flag("--update", o.update,
                "Fit the factors to those inputs in closed form, in place of --retruncate")
      ->excludes("--retruncate")
      ->group(group);
  command.add_option("--rank-multiple", o.rank_multiple, "Ranks are multiples of this")
      ->check(whole_number(1))
      ->capture_default_str()
      ->group(group);
}

void add_details(CLI::App& command, compress_line& line) {
  compress_options& o = line.options;
  const std::string group = "Of one method, allocation or fit";
  command
      .add_option("--last-layers", line.last_layers,
                  "last-layers: how many to compress, auto (smallest final-layer error), all, or a "
                  "number")
      ->capture_default_str()
      ->group(group);
  command.add_option("--step", o.step, "last-layers auto: step of the search")
      ->check(whole_number(1))
      ->capture_default_str()
      ->group(group);
  command
      .add_option("--search-samples", o.search_samples,
                  "last-layers auto, fisher: samples that judge")
      ->check(whole_number(1))
      ->capture_default_str()
      ->group(group);
  command.add_option("--probe-samples", o.probe_samples, "sensitivity: samples of the probes")
      ->check(whole_number(1))
      ->capture_default_str()
      ->group(group);
  command
      .add_option("--probe-ranks", o.probe_ranks,
                  "sensitivity: ranks at which a matrix is probed; 2 fit a curvature")
      ->check(whole_number(1, 2))
      ->capture_default_str()
      ->group(group);
  command
      .add_option(
          "--rounds", o.rounds,
          "sensitivity: rounds of probes, the later ones at the ranks found so far and "
          "kept only where held-out samples improve (default 1); fisher: of gradients, kept "
          "where the search samples improve (default 2)")
      ->check(whole_number(1, 1000))
      ->group(group);
  command
      .add_option("--minimum-retention", o.minimum_retention,
                  "importance: share of parameters that an unimportant layer keeps (default 0.8 "
                  "of the mean)")
      ->check(number(0, 1))
      ->group(group);
  command.add_option("--power", line.power, "tempered: power of the Gram, auto or in [0, 1]")
      ->capture_default_str()
      ->group(group);
  command.add_option("--input-power", o.input_power, "kfac-svd: power of the inputs' Gram")
      ->check(number(0, 1))
      ->capture_default_str()
      ->group(group);
  command.add_option("--output-power", o.output_power, "kfac-svd: power of the curvature")
      ->check(number(0, 1))
      ->capture_default_str()
      ->group(group);
  command
      .add_option("--curvature-ridge", o.curvature_ridge,
                  "kfac-svd, fisher: added to the curvature, over the mean of its diagonal")
      ->check(number(0))
      ->capture_default_str()
      ->group(group);
  command
      .add_option("--beta", o.beta,
                  "ressvd, kfac-svd: residual rank, as a share of the break-even rank mn/(m+n) "
                  "(default: ressvd 0.05, kfac-svd 0)")
      ->check(number(0, 1))
      ->group(group);
  command.add_option("--alpha", o.asvd_alpha, "asvd: exponent of the channel means")
      ->capture_default_str()
      ->group(group);
  command.add_option("--iterations", o.adasvd_iterations, "adasvd: alternating updates")
      ->check(whole_number(0, 1000))
      ->capture_default_str()
      ->group(group);
  command
      .add_option("--fisher", o.fisher,
                  "fwsvd: safetensors file of mean squared gradients, in place of those of the "
                  "samples")
      ->group(group);
  command
      .add_option("--update-target", o.update_target,
                  "update, retruncate, adasvd: 0 the outputs for the compressed inputs, 1 the "
                  "original outputs, or a mix (default 0; retruncate 1)")
      ->check(number(0, 1))
      ->group(group);
  command.add_option("--ridge", o.ridge, "retruncate: pull towards the original matrix")
      ->check(number(0))
      ->capture_default_str()
      ->group(group);
}

void add_output(CLI::App& command, compress_line& line) {
  compress_options& o = line.options;
  add_choice(command, "--format", o.format,
             {{"factored", output_format::factored},
              {"dense", output_format::dense},
              {"gguf", output_format::gguf},
              {"gguf-adapter", output_format::gguf_adapter}},
             "factored (default): two matrices in place of one; dense: their product; gguf: the "
             "product in a GGUF file, for llama.cpp; gguf-adapter: the model itself quantised, and "
             "beside it a LoRA adapter for what that lost")
      ->group("Output");
  command.add_option("--rank", line.rank, "gguf-adapter: of every matrix's correction")
      ->check(whole_number(1))
      ->capture_default_str()
      ->group("Output");
  add_choice(
      command, "--form", o.form,
      {{"pair", ressvd::factored_form::pair}, {"pivoted", ressvd::factored_form::pivoted}},
      "pivoted (default): rank rows of the product and how the others follow from them; pair: U of "
      "out x rank and V of rank x in, as in the papers, rank^2 numbers more")
      ->group("Output");
  add_choice(command, "--dtype", o.type,
             {{"f32", dtype::f32},
              {"f16", dtype::f16},
              {"bf16", dtype::bf16},
              {"q8_0", dtype::q8_0},
              {"q4_0", dtype::q4_0}},
             "Type of the tensors (default: the model's own, f16 for products of quantised ones; "
             "gguf-adapter: q4_0); q8_0 and q4_0 with gguf and gguf-adapter alone")
      ->group("Output");
  command.add_option("--json", line.json, "Write a report into this file")->group("Output");
  command.add_flag("--profile", o.profile, "Print the seconds that each stage took")
      ->group("Output");
  command.add_flag("--resume", o.resume, "Go on from an interrupted run with the same options")
      ->group("Output");
}

void refuse_without_effect(const CLI::App& command, const compress_line& line,
                           const std::string& stated) {
  for (const option_rule& rule : rules) {
    const CLI::Option* const option = command.get_option_no_throw(rule.option);
    if (option == nullptr || option->count() == 0 || rule.applies(line)) continue;
    throw usage_error(std::string(rule.option) + " has no effect with " + stated +
                      "; it goes with " + rule.goes_with);
  }
}

// An adapter has one method, and nothing is removed from its base: of all options those of the
// samples, the machine and the output remain.
void resolve_adapter(const CLI::App& command, compress_line& line) {
  const std::array<std::string, 6> of_output = {"MODEL",   "OUT",    "--format",
                                                "--dtype", "--rank", "--json"};
  for (const CLI::Option* const option : command.get_options()) {
    const std::string group = option->get_group();
    const std::string name = option->get_name();
    const bool known = group == "Samples" || group == "Machine" ||
                       std::find(of_output.begin(), of_output.end(), name) != of_output.end();
    if (option->count() > 0 && !known)
      throw usage_error(name + " has no effect with --format gguf-adapter");
  }
  line.options.method = "svd-llm";
  resolve_samples(command, line);
  const dtype type = line.options.type.value_or(dtype::q4_0);
  line.choice = "a base of type " + std::string(name_of(type)) + " and an adapter of rank " +
                std::to_string(line.rank);
}

} // namespace

void add_refine_options(CLI::App& command, compress_line& line) {
  refine_options& o = line.options.refine;
  const std::string group = "Refinement";
  command
      .add_option("--refine", o.epochs,
                  "Passes over the samples that train the factors of each block on the original "
                  "block's output; 0: none")
      ->check(whole_number(0, 1000))
      ->capture_default_str()
      ->group(group);
  command
      .add_option("--refine-samples", o.samples,
                  "Samples for it, a tenth of which is held out (default: all, at most 256)")
      ->check(whole_number(2))
      ->group(group);
  command.add_option("--refine-batch", o.batch, "Samples of a step")
      ->check(whole_number(1))
      ->capture_default_str()
      ->group(group);
  command.add_option("--refine-rate", o.rate, "Highest learning rate")
      ->check(number(0))
      ->capture_default_str()
      ->group(group);
  command.add_option("--refine-decay", o.decay, "Weight decay towards the closed form")
      ->check(number(0))
      ->capture_default_str()
      ->group(group);
  command
      .add_option("--refine-anchor", o.anchor,
                  "Share of the original block's output for the compressed model's own states in "
                  "the target")
      ->check(number(0, 1))
      ->capture_default_str()
      ->group(group);
  command
      .add_option("--refine-patience", o.patience,
                  "Epochs without a smaller held-out error that end a block; 0: all are run")
      ->check(whole_number(0))
      ->capture_default_str()
      ->group(group);
  command
      .add_flag("--refine-dense", o.dense,
                "Train what stayed dense in blocks with compressed matrices, too")
      ->group(group);
  command.add_flag("--refine-norms", o.norms, "Train the scales of the blocks' norms, too")
      ->group(group);
}

void add_sample_options(CLI::App& command, compress_line& line) {
  compress_options& o = line.options;
  const std::string group = "Samples";
  command
      .add_option("--calibration", line.calibration,
                  "self (the model writes its samples), or a .txt, .npy, .u16 or .u32 file")
      ->capture_default_str()
      ->group(group);
  add_choice(command, "--windows", o.windows,
             {{"random", window_choice::random}, {"first", window_choice::first}},
             "Windows of a calibration file (default random)")
      ->group(group);
  command.add_option("--samples", o.samples, "Calibration samples")
      ->check(whole_number(1))
      ->capture_default_str()
      ->group(group);
  command
      .add_option("--self-samples", o.self_samples,
                  "Samples that the model writes itself, beside --samples of a calibration file")
      ->check(whole_number(0))
      ->capture_default_str()
      ->group(group);
  command.add_option("--seqlen", o.seqlen, "Tokens of a sample, at most the model's context")
      ->check(whole_number(2))
      ->capture_default_str()
      ->group(group);
  command
      .add_option("--curvature-samples", o.curvature_samples,
                  "kfac-svd, fwsvd, fisher: samples that pass backwards (default: a quarter of "
                  "--samples, at least 32)")
      ->check(whole_number(1))
      ->group(group);
  add_choice(command, "--labels", o.text_labels, {{"drawn", false}, {"text", true}},
             "kfac-svd, fwsvd, fisher: drawn from the model's own distribution (default), or the "
             "samples' next tokens")
      ->group(group);
  command.add_option("--heldout-samples", o.heldout_samples, "Samples kept for the evaluation")
      ->check(whole_number(0))
      ->capture_default_str()
      ->group(group);
  command.add_option("--seed", o.seed, "Of samples, random windows and the order of refinement")
      ->capture_default_str()
      ->group(group);
  command
      .add_option("--gradients", o.gradients,
                  "Safetensors file of the gradients' sums at the matrices' outputs, in place of "
                  "those of calibration samples")
      ->group(group);
  command
      .add_option("--grams", o.grams,
                  "Safetensors file of the Grams of the matrices' inputs, in place of those of "
                  "calibration samples")
      ->group(group);
}

void add_machine_options(CLI::App& command, compress_line& line) {
  compress_options& o = line.options;
  add_device_options(command, o.backend, o.device);
  add_threads_option(command)->group("Machine");
}

void add_compress_options(CLI::App& command, compress_line& line) {
  command.set_help_flag(); // added again at the end: presets come first
  command.add_option("MODEL", line.options.model, "Model directory or GGUF file")->required();
  command
      .add_option("OUT", line.options.output,
                  "Directory to create; with gguf and gguf-adapter the file")
      ->required();
  add_choices_of_method(command, line);
  add_details(command, line);
  add_refine_options(command, line);
  add_sample_options(command, line);
  add_output(command, line);
  add_machine_options(command, line);
  command.set_help_flag("-h,--help", "Print this help message and exit")->group("Other");
}

void resolve_samples(const CLI::App& command, compress_line& line) {
  if (line.calibration != "self") line.options.calibration = line.calibration;
  line.options.allocation = allocation::uniform; // no samples for a choice of ranks
  refuse_without_effect(command, line, "the other options");
}

void resolve(const CLI::App& command, compress_line& line) {
  if (makes_adapter(line)) return resolve_adapter(command, line);
  compress_options& o = line.options;
  const auto given = [&](const char* option) { return command.get_option(option)->count() > 0; };
  if (given("--rank")) throw usage_error("--rank goes with --format gguf-adapter");
  const bool method_given = given("--method");
  const preset* base = line.preset;
  if (base == nullptr && !method_given) base = &presets.front();

  if (line.calibration != "self") o.calibration = line.calibration;
  if (line.power != "auto") o.power = parse_power(line.power);
  const std::int64_t own =
      base != nullptr && base->self_samples && !o.calibration.empty() ? o.samples : 0;
  if (base != nullptr) {
    if (!method_given) o.method = base->method;
    o.allocation = base->allocation;
    if (o.method == "kfac-svd") {
      if (!given("--input-power")) o.input_power = base->input_power;
      if (!given("--output-power")) o.output_power = base->output_power;
    }
    if (base->retruncate && retruncates(o) && !o.update) o.retruncate = true;
    if (!given("--self-samples")) o.self_samples = own;
    if (!given("--refine") && all_samples(o) > 1) o.refine.epochs = base->refine;
  } else if (o.method == "adasvd") {
    o.allocation = allocation::importance;
  }
  if (line.allocation) {
    o.allocation = *line.allocation;
  } else if (given("--last-layers")) {
    o.allocation = allocation::last_layers;
  }
  if (line.last_layers == "all") {
    if (o.allocation == allocation::last_layers) o.allocation = allocation::uniform;
  } else if (line.last_layers != "auto") {
    o.last_layers = parse_count(line.last_layers, "--last-layers");
  }

  refuse_without_effect(command, line, stated(o));
  if (o.method == "tempered" && !o.power && o.heldout_samples == 0) {
    throw usage_error(
        "--heldout-samples 0 leaves --power auto nothing to judge by; give --power a number");
  }

  line.choice = stated(o);
  if (base == nullptr) return;
  const bool changed = o.method != base->method || o.allocation != base->allocation ||
                       o.last_layers || o.retruncate != base->retruncate || o.update ||
                       o.self_samples != own || o.refine.epochs != base->refine;
  line.choice = "preset " + std::string(base->name) + (changed ? ", changed: " : ": ") +
                line.choice + (changed ? "" : ", " + std::string(base->reason));
}

} // namespace ressvd_llm
