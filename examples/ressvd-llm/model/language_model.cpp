// SPDX-License-Identifier: Apache-2.0
#include "model/language_model.hpp"

#include <stdexcept>
#include <string>
#include <utility>

namespace ressvd_llm {

namespace {

std::uint64_t float32_bytes(const checkpoint& source) {
  std::uint64_t elements = 0;
  for (const std::string& name : source.names())
    elements += static_cast<std::uint64_t>(source.describe(name).elements);
  return elements * sizeof(float);
}

} // namespace

language_model language_model::open(const std::filesystem::path& directory,
                                    const model_options& options) {
  model_config config = read_config(directory);
  checkpoint source = checkpoint::open(directory);
  require_matrices(source, config);
  return {std::move(source), std::move(config), options};
}

language_model::language_model(checkpoint source, model_config config, const model_options& options)
    : source_(std::move(source)),
      config_(std::move(config)),
      storage_(float32_bytes(source_) <= options.memory_limit ? weight_storage::float32
                                                              : weight_storage::mapped) {}

void language_model::require_layer(std::int64_t index) const {
  if (index < 0 || index >= config_.layers)
    throw std::invalid_argument("language_model: layer " + std::to_string(index) + " of " +
                                std::to_string(config_.layers));
}

const layer_weights& language_model::layer(std::int64_t index) const {
  require_layer(index);
  const auto found = layers_.find(index);
  if (found != layers_.end()) return found->second;
  return layers_.emplace(index, load_layer(source_, config_, index, storage_)).first->second;
}

const outer_weights& language_model::outer() const {
  if (!outer_) outer_ = load_outer(source_, config_, storage_);
  return *outer_;
}

void language_model::replace_layer(std::int64_t index, layer_weights weights) {
  require_layer(index);
  layers_.insert_or_assign(index, std::move(weights));
}

} // namespace ressvd_llm
