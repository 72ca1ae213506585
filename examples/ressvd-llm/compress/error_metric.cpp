// SPDX-License-Identifier: Apache-2.0
#include "compress/error_metric.hpp"

#include <string>
#include <utility>

#include <ressvd/compiled.hpp>

#include "compress/curvature.hpp"
#include "model/parallel.hpp"
#include "ui/progress.hpp"

namespace ressvd_llm {
namespace {

weight_matrix metric_of(const hidden_states& gradient, std::int64_t width, std::int64_t layer,
                        double share) {
  const ressvd::eigen_backend<float> be(make_host_context());
  ressvd::gram_accumulator sums(
      be, width, {.name = "layer " + std::to_string(layer) + ", gradient at its output"});
  const auto tokens = static_cast<std::int64_t>(gradient.size()) / width;
  sums.add(ressvd::row_major(gradient.data(), tokens, width));
  const auto h = sums.gram();
  double trace = 0;
  for (std::int64_t i = 0; i < width; ++i)
    trace += h.data[i * h.ld + i];
  const double weight = trace > 0 ? share * static_cast<double>(width) / trace : 0;
  const double plain = trace > 0 ? 1 - share : 1;
  std::vector<float> metric;
  for (std::int64_t i = 0; i < width; ++i) {
    for (std::int64_t j = 0; j < width; ++j)
      metric.push_back(static_cast<float>(weight * h.data[i * h.ld + j] + (i == j ? plain : 0)));
  }
  return {width, width, std::move(metric)};
}

} // namespace

std::vector<weight_matrix> error_metrics(model_passes& passes, const sample_set& samples,
                                         std::uint64_t seed, double share) {
  const model_config& config = passes.config();
  std::vector<weight_matrix> metrics(static_cast<std::size_t>(config.layers));
  progress bar("gradients", config.layers);
  pass_gradients(passes, samples,
                 {.labels = {.source = label_source::drawn, .seed = seed},
                  .at_output =
                      [&](std::int64_t layer, const hidden_states& gradient) {
                        metrics[static_cast<std::size_t>(layer)] =
                            metric_of(gradient, config.hidden_size, layer, share);
                      }},
                 [&](std::int64_t, const layer_back&) { bar.advance(); });
  return metrics;
}

} // namespace ressvd_llm
