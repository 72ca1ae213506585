// SPDX-License-Identifier: Apache-2.0
#include "commands/convert.hpp"

#include <cstdio>
#include <filesystem>
#include <memory>

#include <CLI/CLI.hpp>

#include "commands/checks.hpp"
#include "compress/write_checkpoint.hpp"
#include "io/checkpoint_writer.hpp"
#include "io/gguf_model.hpp"
#include "model/language_model.hpp"

namespace ressvd_llm {
namespace {

void run(const compress_options& options) {
  const language_model model = language_model::open(options.model);
  (void)gguf_architecture(model.config()); // throws where there is none
  checkpoint_writer writer(options.output, options.model, {.gguf = true});
  write_converted(writer, model, options);
  writer.commit();
  std::printf("%s: %llu bytes%s\n", options.output.string().c_str(),
              static_cast<unsigned long long>(std::filesystem::file_size(options.output)),
              has_gguf_tokenizer(options.output)
                  ? ""
                  : ", without a tokenizer: it reads and writes token ids");
}

} // namespace

void add_convert(CLI::App& app) {
  const auto options = std::make_shared<compress_options>();
  options->format = output_format::gguf;
  CLI::App* const command =
      app.add_subcommand("convert", "Write a model, compressed or not, as a GGUF file");
  command->add_option("MODEL", options->model, "Model directory or GGUF file")->required();
  command->add_option("OUT", options->output, "File to write")->required();
  add_choice(*command, "--dtype", options->type,
             {{"f32", dtype::f32},
              {"f16", dtype::f16},
              {"bf16", dtype::bf16},
              {"q8_0", dtype::q8_0},
              {"q4_0", dtype::q4_0}},
             "Type of the matrices (default: the model's own)");
  command->callback([options] { run(*options); });
}

} // namespace ressvd_llm
