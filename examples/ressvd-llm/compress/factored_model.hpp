// SPDX-License-Identifier: Apache-2.0
//
// A model whose matrices are factored: any of its layers at any ranks.
#pragma once

#include <cstdint>
#include <filesystem>
#include <utility>

#include "compress/curvature_store.hpp"
#include "compress/factored_layer.hpp"
#include "compress/factoring.hpp"
#include "compress/layer_store.hpp"
#include "compress/model_passes.hpp"
#include "compress/model_ranks.hpp"
#include "compress/options.hpp"
#include "compress/samples.hpp"
#include "model/layer.hpp"

namespace ressvd_llm {

// Passes and engine must outlive the object.
class factored_model {
 public:
  factored_model(model_passes& passes, factoring_engine& engine, layer_store store,
                 ressvd::any_method method, const curvature_store* curvature)
      : passes_(passes),
        engine_(engine),
        store_(std::move(store)),
        method_(std::move(method)),
        curvature_(curvature) {}

  factoring_engine& engine() const { return engine_; }
  const ressvd::any_method& method() const { return method_; }
  const layer_store& store() const { return store_; }
  // Null where nothing asked for it.
  const curvature_store* curvature() const { return curvature_; }

  // The factored layer; its summary has no matrices, and is enough for ranks, spectra and reports.
  factored_layer factored(std::int64_t layer) const;
  factored_layer summary(std::int64_t layer) const;

  // The layer with its matrices at these ranks.
  layer_weights layer(std::int64_t layer, const layer_ranks& ranks) const;
  // One matrix of a layer replaced.
  void replace(layer_weights& weights, const factored_module& matrix,
               const ressvd::rank_choice& choice) const;

  // The final hidden states of the model with these ranks in layers from `first` on, from the
  // states before that layer.
  hidden_states run(hidden_states before, std::int64_t first, std::int64_t length,
                    const model_ranks& ranks) const;
  hidden_states run(const sample_set& samples, const model_ranks& ranks) const;

 private:
  factored_layer of_method(factored_layer layer) const;

  model_passes& passes_;
  factoring_engine& engine_;
  layer_store store_;
  ressvd::any_method method_;
  const curvature_store* curvature_;
};

// Passes the samples through the original layers (or reads their Grams from options.grams) and
// factors by method_of(options) what `wanted` names, except layers that lie in the directory
// already. `curvature`, or null, must outlive the result.
factored_model factor_model(model_passes& passes, factoring_engine& engine,
                            const compress_options& options, const sample_set& samples,
                            const candidate_ranks& wanted, const std::filesystem::path& directory,
                            const curvature_store* curvature = nullptr);

} // namespace ressvd_llm
