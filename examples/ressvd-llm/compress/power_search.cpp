// SPDX-License-Identifier: Apache-2.0
#include "compress/power_search.hpp"

#include <string>

#include "compress/factored_model.hpp"
#include "compress/model_ranks.hpp"

namespace ressvd_llm {

power_choice search_power(model_passes& passes, factoring_engine& engine,
                          const compress_options& options, double ratio,
                          const calibration_samples& samples, const std::filesystem::path& scratch,
                          kept_results& kept) {
  const model_config& config = passes.config();
  const ressvd::layer_candidate uniform{config.layers, ratio};
  const candidate_ranks wanted = ranks_of_all({uniform}, config, options);
  const model_ranks ranks = ranks_of(uniform, config, options);
  hidden_states original;
  power_choice result;
  double smallest = 0;
  for (const double power : {0.4, 0.6, 0.8, 1.0}) {
    const auto directory = scratch / ("power-" + std::to_string(power));
    const double divergence = kept.value("power " + std::to_string(power), [&] {
      std::filesystem::create_directories(directory);
      compress_options tried = options;
      tried.power = power;
      const factored_model factored =
          factor_model(passes, engine, tried, samples.calibration, wanted, directory);
      if (original.empty()) original = passes.final_original(samples.heldout);
      return passes.mean_divergence(original, factored.run(samples.heldout, ranks));
    });
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
