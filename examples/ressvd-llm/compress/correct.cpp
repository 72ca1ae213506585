// SPDX-License-Identifier: Apache-2.0
#include "compress/correct.hpp"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <utility>

#include <nlohmann/json.hpp>

#include "compress/factoring.hpp"
#include "compress/gram_file.hpp"
#include "compress/model_passes.hpp"
#include "compress/model_ranks.hpp"
#include "compress/samples.hpp"
#include "compress/write_checkpoint.hpp"
#include "io/checkpoint_writer.hpp"
#include "io/error.hpp"
#include "io/gguf_model.hpp"
#include "model/evaluation.hpp"
#include "ui/progress.hpp"

namespace ressvd_llm {
namespace {

[[noreturn]] void refuse_mixture(const std::string& name) {
  throw usage_error(name + ": adapters for mixtures of experts are not supported");
}

void require_correctable(const language_model& original) {
  if (original.config().experts > 0) refuse_mixture(original.source().path().string());
  for (std::int64_t layer = 0; layer < original.config().layers; ++layer) {
    for (const linear_module& module : linear_modules(original.config(), layer)) {
      if (rank_of(original.source(), module))
        throw usage_error(original.source().path().string() + ": is a factored checkpoint");
    }
  }
}

void require_same_model(const correct_options& options, const language_model& original,
                        const language_model& base) {
  const std::string name = options.base.string();
  if (!is_gguf(options.base)) throw usage_error(name + ": is not a GGUF file");
  const auto refuse = [&](const std::string& what) {
    throw usage_error(name + ": " + what + " " + options.run.model.string());
  };
  const model_config& a = original.config();
  const model_config& b = base.config();
  require_correctable(original);
  if (b.experts > 0) refuse_mixture(name);
  if (b.family == model_family::phi3)
    throw usage_error(name + ": fused matrices, as of Phi-3, cannot be corrected");
  if (a.layers != b.layers || a.hidden_size != b.hidden_size || a.vocab != b.vocab)
    refuse("has not the layers, hidden size and vocabulary of");
  for (std::int64_t layer = 0; layer < a.layers; ++layer) {
    const auto wanted = linear_modules(a, layer);
    const auto present = linear_modules(b, layer);
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      if (i >= present.size() || wanted[i].prefix != present[i].prefix ||
          wanted[i].out != present[i].out || wanted[i].in != present[i].in)
        refuse(wanted[i].prefix + " has another shape than in");
    }
  }
}

// W − Q.
linear difference(const linear& original, const linear& base) {
  std::vector<float> values = original.dense.values();
  const std::vector<float> quantised = base.dense.values();
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] -= quantised[i];
  return make_linear(weight_matrix(original.out(), original.in(), std::move(values)), {});
}

bool is_zero(const linear& l) {
  const std::vector<float> values = l.dense.values();
  return std::all_of(values.begin(), values.end(), [](float value) { return value == 0; });
}

std::optional<double> remaining_loss(const factored_module& m, const ressvd::rank_choice& choice) {
  const auto loss = m.state.activation_loss(choice);
  if (!loss) return std::nullopt;
  return loss->relative;
}

void write_pair(checkpoint_writer& writer, const model_config& config, const linear_module& module,
                const linear& pair, dtype type) {
  const std::string name = gguf_name(config.family, module.weight_name());
  writer.add(name + ".lora_a", {pair.rank(), pair.in()}, pair.v.values(), type);
  std::vector<float> u = pair.u.values();
  interleave_rows(u, pair.out(), interleaved_heads(config, module.weight_name()));
  writer.add(name + ".lora_b", {pair.out(), pair.rank()}, u, type);
}

gguf_pairs adapter_pairs(const language_model& base) {
  gguf_pairs pairs;
  pairs.text("general.architecture", gguf_architecture(base.config()));
  pairs.text("general.type", "adapter");
  pairs.text("adapter.type", "lora");
  // With an alpha of 0 llama.cpp applies the product as it is, without alpha/rank.
  pairs.f32("adapter.lora.alpha", 0.0f);
  return pairs;
}

std::vector<text_figures> evaluate_correction(const language_model& original,
                                              const language_model& base,
                                              const language_model& corrected,
                                              const sample_set& heldout) {
  if (heldout.count() == 0) return {};
  return compare_on_text({original, base, corrected},
                         cut_windows(heldout.ids, {.length = heldout.length}));
}

// What a correction needs beside the base.
struct correction_inputs {
  std::shared_ptr<device> card; // null: the CPU
  candidate_ranks wanted;
  std::optional<gram_file> grams;
  checkpoint_writer writer;
  calibration_samples samples;
};

correction_inputs gather_inputs(const correct_options& options, const language_model& original) {
  const model_config& config = original.config();
  auto card = choose_device(options.run.backend, options.run.device, config);
  candidate_ranks wanted(config.layers);
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    for (const linear_module& module : linear_modules(config, layer))
      wanted[layer].push_back({std::min({options.rank, module.out, module.in})});
  }
  std::optional<gram_file> grams;
  if (!options.run.grams.empty()) {
    grams.emplace(options.run.grams);
    grams->require(config, wanted);
  }
  checkpoint_writer writer(options.run.output, options.base, {.gguf = true});
  return {std::move(card), std::move(wanted), std::move(grams), std::move(writer),
          make_samples(options.run, original)};
}

correction_report write_correction(const correct_options& options, const language_model& original,
                                   const language_model& base, correction_inputs inputs) {
  compress_options run = options.run;
  run.form = ressvd::factored_form::pair; // what adapters are
  const model_config& config = original.config();
  const candidate_ranks& wanted = inputs.wanted;
  const std::optional<gram_file>& grams = inputs.grams;
  const calibration_samples& samples = inputs.samples;
  checkpoint_writer& writer = inputs.writer;
  correction_report report{.original = run.model.string(),
                           .base = options.base.string(),
                           .output = run.output.string(),
                           .matrices = {},
                           .heldout = {}};
  model_passes passes(original);
  const auto engine = make_factoring_engine(run, inputs.card);
  const ressvd::any_method method = method_of(run);
  language_model corrected = base;
  hidden_states hidden = grams ? hidden_states{} : passes.embed(samples.calibration);
  progress bar("correcting", config.layers);
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    const auto factoring = engine->begin_layer(config, layer, method);
    if (grams) {
      for (const layer_input& input : wanted_inputs(config, layer, wanted[layer]))
        factoring->take(input, grams->read(config, layer, input));
    } else {
      const input_observer observer = [&](const input_observation& seen) {
        factoring->observe(seen.input, seen.x);
      };
      passes.run_original(layer, hidden, samples.calibration.length, &observer);
    }
    const auto modules = linear_modules(config, layer);
    layer_weights weights = base.layer(layer);
    layer_weights differences;
    differences.linears.resize(weights.linears.size());
    std::vector<rank_list> ranks = wanted[layer];
    for (std::size_t i = 0; i < modules.size(); ++i) {
      const matrix_place& place = modules[i].place;
      differences[place] = difference(original.layer(layer)[place], weights[place]);
      if (is_zero(differences[place])) ranks[i].clear();
    }
    const std::vector<factored_module> factored = factoring->factor(differences, ranks);
    for (std::size_t i = 0; i < modules.size(); ++i) {
      if (ranks[i].empty()) continue;
      const ressvd::rank_choice choice{.rank = ranks[i].front()};
      const matrix_place& place = modules[i].place;
      const linear pair = engine->slice(factored[i], differences[place], choice);
      write_pair(writer, base.config(), modules[i], pair, run.type.value_or(dtype::f32));
      weights[place] = make_corrected_linear(weights[place], pair);
      report.matrices.push_back(
          {modules[i].prefix, pair.rank(), remaining_loss(factored[i], choice)});
    }
    corrected.replace_layer(layer, std::move(weights));
    bar.advance();
  }
  if (report.matrices.empty()) {
    throw usage_error(report.base + ": every matrix is that of " + report.original +
                      ", nothing is to be corrected");
  }
  writer.describe(adapter_pairs(base));
  writer.commit();
  report.base_bytes = std::filesystem::file_size(options.base);
  report.bytes = std::filesystem::file_size(run.output);
  report.heldout_tokens = samples.heldout.tokens();
  report.heldout = evaluate_correction(original, base, corrected, samples.heldout);
  return report;
}

} // namespace

correction_report correct(const correct_options& options) {
  const language_model original = language_model::open(options.run.model);
  const language_model base = language_model::open(options.base);
  require_same_model(options, original, base);
  return write_correction(options, original, base, gather_inputs(options, original));
}

std::filesystem::path adapter_beside(const std::filesystem::path& base) {
  std::filesystem::path stem = base;
  if (stem.extension() == ".gguf") stem.replace_extension();
  return stem += ".lora.gguf";
}

correction_report quantise_and_correct(const compress_options& run, std::int64_t rank) {
  compress_options conversion = run;
  conversion.format = output_format::gguf;
  conversion.type = run.type.value_or(dtype::q4_0);
  if (!is_quantised(*conversion.type)) {
    throw usage_error("--dtype " + std::string(name_of(*conversion.type)) +
                      " leaves nothing to correct; the base of an adapter is q8_0 or q4_0");
  }
  correct_options options{.base = run.output, .rank = rank, .run = run};
  options.run.output = adapter_beside(run.output);
  options.run.type = dtype::f16;
  const language_model original = language_model::open(run.model);
  (void)gguf_architecture(original.config()); // throws where there is none
  require_correctable(original);
  // Opened before the samples are drawn, so that an output that exists is refused at once.
  checkpoint_writer base(run.output, run.model, {.gguf = true});
  correction_inputs inputs = gather_inputs(options, original);
  write_converted(base, original, conversion);
  base.commit();
  try {
    return write_correction(options, original, language_model::open(run.output), std::move(inputs));
  } catch (...) {
    std::fprintf(stderr, "%s is complete; correct makes its adapter\n",
                 run.output.string().c_str());
    throw;
  }
}

nlohmann::ordered_json to_json(const correction_report& report) {
  nlohmann::ordered_json json{{"original", report.original},
                              {"model", report.base},
                              {"model_bytes", report.base_bytes},
                              {"output", report.output},
                              {"bytes", report.bytes}};
  json["matrices"] = nlohmann::ordered_json::array();
  for (const corrected_matrix& matrix : report.matrices) {
    nlohmann::ordered_json item{{"name", matrix.name}, {"rank", matrix.rank}};
    if (matrix.remaining_loss) item["remaining_loss"] = *matrix.remaining_loss;
    json["matrices"].push_back(std::move(item));
  }
  if (report.heldout.empty()) return json;
  nlohmann::ordered_json heldout{{"tokens", report.heldout_tokens}};
  for (std::size_t i = 0; i < report.heldout.size(); ++i) {
    const char* const name = i == 0 ? "original" : i == 1 ? "model" : "corrected";
    heldout[name] = {{"perplexity", report.heldout[i].perplexity},
                     {"divergence", report.heldout[i].divergence}};
  }
  json["heldout"] = std::move(heldout);
  return json;
}

} // namespace ressvd_llm
