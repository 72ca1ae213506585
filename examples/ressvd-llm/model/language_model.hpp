// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>

#include "io/checkpoint.hpp"
#include "io/config.hpp"
#include "model/layer.hpp"

namespace ressvd_llm {

struct model_options {
  // A model whose parameters take at most this many bytes as float32 is held that way; a larger
  // one stays in the mapped file, and its matrices are converted whenever they are used.
  std::uint64_t memory_limit = std::uint64_t{4} << 30;
};

// A checkpoint and its config, with the layers loaded when first asked for. Copies share all
// weights, so a variant of a model costs no more than the layers that are replaced in it. One
// thread at a time may use it.
class language_model {
 public:
  // Throws file_error, also where a matrix of the config is missing or has another shape.
  static language_model open(const std::filesystem::path& directory,
                             const model_options& options = {});
  language_model(checkpoint source, model_config config, const model_options& options = {});

  const model_config& config() const { return config_; }
  const checkpoint& source() const { return source_; }
  weight_storage storage() const { return storage_; }

  // Throws std::invalid_argument for a layer that does not exist. References are valid until the
  // layer is replaced.
  const layer_weights& layer(std::int64_t index) const;
  const outer_weights& outer() const;

  // Exchanges a layer of this object.
  void replace_layer(std::int64_t index, layer_weights weights);

 private:
  void require_layer(std::int64_t index) const;

  checkpoint source_;
  model_config config_;
  weight_storage storage_;
  mutable std::map<std::int64_t, layer_weights> layers_;
  mutable std::optional<outer_weights> outer_;
};

} // namespace ressvd_llm
