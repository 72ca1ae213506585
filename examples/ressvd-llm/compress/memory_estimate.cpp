// SPDX-License-Identifier: Apache-2.0
#include "compress/memory_estimate.hpp"

#include <algorithm>
#include <optional>

#include <sys/resource.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "compress/curvature.hpp"
#include "model/backward.hpp"
#include "model/comparison.hpp"
#include "model/evaluation.hpp"
#include "model/forward.hpp"
#include "model/generation.hpp"
#include "model/language_model.hpp"
#include "model/layer.hpp"
#include "model/parallel.hpp"

namespace ressvd_llm {

memory_estimate estimate_memory(const compress_options& options, const model_config& config,
                                bool weights_in_memory, std::uint64_t model_parameters,
                                std::uint64_t output_parameters) {
  const auto bytes = [](std::int64_t count, std::int64_t size) {
    return static_cast<std::uint64_t>(count * size);
  };
  memory_estimate estimate;
  const std::int64_t window_length = (std::min)(options.seqlen, config.max_positions);
  // Calibration: the states, and a second copy where input and output of a layer are compared or
  // two models run side by side. Search: original end, shared prefix, candidate.
  const bool two_copies = options.allocation == allocation::importance || target_mix(options) > 0;
  const std::int64_t window = window_length * config.hidden_size;
  const std::int64_t samples = samples_needed(options);
  const std::int64_t calibration = samples * (two_copies ? 2 : 1);
  const std::int64_t search =
      3 * (std::min)(samples, (std::max)(options.search_samples, options.probe_samples));
  estimate.hidden_states = bytes((std::max)(calibration, search) * window, 4);

  std::int64_t layer = 0;
  std::int64_t squares = 0;
  std::int64_t widest = 0;
  std::optional<layer_input> last;
  for (const linear_module& module : linear_modules(config, largest_layer(config))) {
    layer += module.out * module.in;
    squares += module.out * module.out;
    if (last != module.input) estimate.grams += bytes(module.in * module.in, 8);
    last = module.input;
    widest = (std::max)(widest, module.in);
    const std::int64_t area = module.out * module.in;
    const std::int64_t side = (std::min)(module.out, module.in);
    // Weights twice in float and twice in double, Gram, eigenvectors and their work space, basis.
    const std::uint64_t work = bytes(2 * area, 4) + bytes(2 * area, 8) + bytes(4 * side * side, 8) +
                               bytes((module.out + module.in) * side, 8);
    estimate.factoring = (std::max)(estimate.factoring, work);
  }
  estimate.weights = weights_in_memory ? 4 * model_parameters : bytes(layer, 4);
  estimate.grams += bytes(3 * widest * widest, 8);

  const std::int64_t chunk =
      (std::max)(forward_options{}.shared_tokens / window_length, std::int64_t{1}) * window_length;
  const std::int64_t row = config.hidden_size + 2 * config.heads * config.head_dim +
                           2 * config.kv_heads * config.head_dim + mlp_row_floats(config);
  estimate.forward = bytes(chunk * row, 4);
  const std::int64_t written =
      options.calibration.empty() ? samples + options.heldout_samples : options.self_samples;
  if (written > 0) {
    const std::uint64_t sequence =
        bytes(2 * config.layers * window_length * config.kv_heads * config.head_dim, 4);
    estimate.sampling = (std::min)(static_cast<std::uint64_t>(written) * sequence,
                                   (std::max)(sample_options{}.memory_limit, sequence));
  }
  if (const std::int64_t windows = samples_of_curvature(options); windows > 0) {
    estimate.curvature = estimate_curvature_memory(config, windows, window_length,
                                                   weights_in_memory, model_parameters);
  }
  if (refits(options)) {
    // Vectors that grow by doubling.
    estimate.refit = bytes(2 * chunk * (config.hidden_size + 2 * widest), 4);
    if (needs_curvature(options)) estimate.refit += bytes(squares, 8);
  }
  if (const std::int64_t windows = samples_of_refinement(options); windows > 0) {
    const std::uint64_t refit = refits(options) ? estimate.hidden_states + estimate.grams +
                                                      estimate.factoring + estimate.refit
                                                : 0;
    estimate.refinement =
        refit + estimate_refinement_memory(options.refine, config, windows, window_length);
  }
  if (options.heldout_samples > 0) {
    const bool output_in_memory = 4 * output_parameters <= model_options{}.memory_limit;
    estimate.evaluation = estimate.weights +
                          (output_in_memory ? 4 * output_parameters : bytes(layer, 4)) +
                          comparison_buffers(config, options.heldout_samples, window_length, 2);
  }
  return estimate;
}

std::uint64_t estimate_refinement_memory(const refine_options& options, const model_config& config,
                                         std::int64_t windows, std::int64_t window_length) {
  const auto bytes = [](std::int64_t count, std::int64_t size) {
    return static_cast<std::uint64_t>(count * size);
  };
  std::int64_t area = 0;
  for (const linear_module& module : linear_modules(config, largest_layer(config)))
    area += module.out * module.in;
  // Before and after the block, in both models, the target where it is mixed, that of the held-out
  // windows, and two of a batch, whose vectors grow by doubling.
  const std::int64_t copies = options.anchor > 0 ? 4 : 3;
  const std::int64_t heldout = (std::max)(windows / 10, std::int64_t{2});
  const std::int64_t batch = (std::min)(windows, options.batch);
  const std::uint64_t states =
      bytes((copies * windows + heldout + 4 * batch) * window_length * config.hidden_size, 4);
  // Closed form, values, gradients, two means of them, best values and those that follow them, and
  // a centre.
  const std::uint64_t parameters = bytes(8 * area, 4);
  // A forward pass of its own, and that within the backward one.
  const std::int64_t threads = thread_count();
  return states + parameters + 2 * forward_buffers(config, window_length, threads) +
         backward_buffers(config, window_length, threads);
}

std::uint64_t estimate_curvature_memory(const model_config& config, std::int64_t windows,
                                        std::int64_t window_length, bool weights_in_memory,
                                        std::uint64_t model_parameters) {
  const auto bytes = [](std::int64_t count, std::int64_t size) {
    return static_cast<std::uint64_t>(count * size);
  };
  const std::int64_t tokens = windows * window_length;
  std::int64_t area = 0;
  std::int64_t squares = 0;
  for (const linear_module& module : linear_modules(config, largest_layer(config))) {
    area += module.out * module.in;
    squares += module.out * module.out;
  }
  const std::uint64_t weights = weights_in_memory ? 4 * model_parameters : bytes(area, 4);
  const std::uint64_t states =
      bytes(curvature_copies(config.layers) * tokens * config.hidden_size, 4);
  // H in double, and the triangles that are written.
  const std::uint64_t sums = bytes(squares, 8) + bytes(squares, 4);
  const std::uint64_t logits = bytes(logits_block(config.vocab, tokens), 4 * config.vocab);
  const std::uint64_t buffers = forward_buffers(config, window_length, thread_count()) +
                                backward_buffers(config, window_length, thread_count());
  return weights + states + sums + logits + buffers;
}

void return_freed_memory() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

std::uint64_t peak_memory() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::uint64_t>(usage.ru_maxrss) * 1024;
}

} // namespace ressvd_llm
