// SPDX-License-Identifier: Apache-2.0
//
// The loss's gradients at the outputs of a model's matrices, from one backward pass over samples,
// and what is summed of them: the output side's counterpart of the Grams of inputs.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include <ressvd/compiled.hpp>

#include "compress/curvature_store.hpp"
#include "compress/factoring.hpp"
#include "compress/model_passes.hpp"
#include "compress/samples.hpp"
#include "model/backward.hpp"

namespace ressvd_llm {

struct gradient_pass_options {
  label_options labels = {};
  std::int64_t first_layer = 0; // no gradients are needed in layers before it
  std::function<layer_weights(std::int64_t)> layer = {}; // absent: the original's
};

// One layer's backward pass, with an observer of its gradients or none.
using layer_back = std::function<void(const gradient_observer*)>;

// Calls visit(layer, back) for the layers from the last to options.first_layer; a visit that does
// not call back leaves the layer unobserved. The labels of windows are those of cpu_backward::loss,
// whose result is returned.
// Hidden states are kept before every ⌈√L⌉-th of L layers. Between two of these they are computed
// again when the pass gets there, and each layer is run once more for its gradients: two to three
// forward passes beside the backward one, and curvature_copies(L) times the samples' hidden states
// in memory.
loss_result pass_gradients(
    model_passes& passes, const sample_set& samples, const gradient_pass_options& options,
    const std::function<void(std::int64_t layer, const layer_back& back)>& visit);

// Copies of the samples' hidden states that a pass holds at most, the gradient among them: at most
// 2√L + 2.
std::int64_t curvature_copies(std::int64_t layers);

// Sums the statistics of all layers that the store lacks, and stores them.
void gather_curvature(model_passes& passes, factoring_engine& engine, const sample_set& samples,
                      const label_options& labels, const curvature_store& store);

} // namespace ressvd_llm
