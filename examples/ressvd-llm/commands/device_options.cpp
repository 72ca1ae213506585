// SPDX-License-Identifier: Apache-2.0
#include "commands/device_options.hpp"

#include <CLI/CLI.hpp>

#include "commands/checks.hpp"

namespace ressvd_llm {

void add_device_options(CLI::App& command, backend_choice& backend, device_options& options) {
  constexpr const char* group = "Machine";
  backend = backend_choice::automatic;
  add_choice(command, "--backend", backend,
             {{"auto", backend_choice::automatic},
              {"cpu", backend_choice::cpu},
              {"cuda", backend_choice::cuda}},
             "Where it runs (default auto: a card where there is one and the model is worth it)")
      ->group(group);
  command
      .add_option("--device-memory", options.memory_limit,
                  "cuda: most bytes to take of the card's memory, also as 20GiB (default: what is "
                  "free)")
      ->transform(CLI::AsSizeValue(false))
      ->check(whole_number(1))
      ->group(group);
  add_choice(command, "--precision", options.precision,
             {{"f32", dtype::f32}, {"bf16", dtype::bf16}, {"f16", dtype::f16}},
             "cuda: type of the factors of products, whose sums are in float32 (default: the "
             "model's)")
      ->group(group);
  command
      .add_option("--kernel-cache", options.kernel_cache,
                  "cuda: folder of your own that keeps compiled kernels for later runs")
      ->group(group);
}

} // namespace ressvd_llm
