// SPDX-License-Identifier: Apache-2.0
#include "compress/power_search.hpp"

#include <string>

#include "compress/factored_model.hpp"
#include "compress/model_ranks.hpp"
#include "io/error.hpp"

namespace ressvd_llm {

power_choice search_power(model_passes& passes, factoring_engine& engine,
                          const compress_options& options, double ratio,
                          const calibration_samples& samples,
                          const std::filesystem::path& scratch) {
  if (samples.heldout.count() == 0) {
    throw usage_error("--power auto needs held-out samples; the calibration text is too short");
  }
  const model_config& config = passes.config();
  const ressvd::layer_candidate uniform{config.layers, ratio};
  const candidate_ranks wanted = ranks_of_all({uniform}, config, options);
  const model_ranks ranks = ranks_of(uniform, config, options);
  const hidden_states original = passes.final_original(samples.heldout);
  power_choice result;
  double smallest = 0;
  for (const double power : {0.4, 0.6, 0.8, 1.0}) {
    const auto directory = scratch / ("power-" + std::to_string(power));
    std::filesystem::create_directories(directory);
    compress_options tried = options;
    tried.power = power;
    const factored_model factored =
        factor_model(passes, engine, tried, samples.calibration, wanted, directory);
    const double divergence =
        passes.mean_divergence(original, factored.run(samples.heldout, ranks));
    if (result.curve.empty() || divergence < smallest) {
      result.power = power;
      smallest = divergence;
    }
    result.curve.push_back({power, divergence});
    std::filesystem::remove_all(directory);
  }
  return result;
}

} // namespace ressvd_llm
