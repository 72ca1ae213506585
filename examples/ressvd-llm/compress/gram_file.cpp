// SPDX-License-Identifier: Apache-2.0
#include "compress/gram_file.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>
#include <utility>

#include "io/error.hpp"
#include "ui/progress.hpp"

namespace ressvd_llm {

struct gram_file::names {
  std::string gram;
  std::string mean_abs;
  std::string tokens;
  std::int64_t features;
};

std::int64_t read_tokens(const checkpoint& source, const std::string& name, std::int64_t least) {
  const double tokens = read_f64(source, name, {1}).front();
  if (!(tokens >= static_cast<double>(least) && tokens <= 0x1p53 && tokens == std::floor(tokens)))
    throw file_error(source.path(), name, std::to_string(tokens) + " is not a number of tokens");
  return static_cast<std::int64_t>(tokens);
}

std::vector<double> read_gram(const checkpoint& source, const std::string& name, std::int64_t n) {
  std::vector<double> gram = read_f64(source, name, {n, n});
  const auto fail = [&](const std::string& what) { throw file_error(source.path(), name, what); };
  const auto element = [&](std::int64_t i, std::int64_t j) {
    return gram[static_cast<std::size_t>(i * n + j)];
  };
  const auto place = [](std::int64_t i, std::int64_t j) {
    return "element [" + std::to_string(i) + ", " + std::to_string(j) + "]";
  };
  for (std::int64_t i = 0; i < n; ++i) {
    if (element(i, i) < 0) fail(place(i, i) + " is negative");
  }
  // Sums in single precision may differ by their rounding.
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j < i; ++j) {
      const double scale = std::sqrt(element(i, i)) * std::sqrt(element(j, j));
      if (std::abs(element(i, j) - element(j, i)) > 1e-3 * scale) {
        fail(place(i, j) + " differs from [" + std::to_string(j) + ", " + std::to_string(i) + "]");
      }
    }
  }
  return gram;
}

std::vector<layer_input> wanted_inputs(const model_config& config, std::int64_t layer,
                                       const std::vector<rank_list>& wanted) {
  std::vector<layer_input> inputs;
  const auto modules = linear_modules(config, layer);
  for (std::size_t i = 0; i < modules.size(); ++i) {
    const bool listed = !inputs.empty() && inputs.back() == modules[i].input;
    if (!wanted[i].empty() && !listed) inputs.push_back(modules[i].input);
  }
  return inputs;
}

void gram_file::require(const model_config& config, const candidate_ranks& wanted) const {
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    for (const layer_input& input : wanted_inputs(config, layer, wanted[layer]))
      require(config, layer, input);
  }
  progress bar("checking the Grams", config.layers);
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    for (const layer_input& input : wanted_inputs(config, layer, wanted[layer]))
      (void)read(config, layer, input);
    bar.advance();
  }
}

// The Gram stands under the name of any matrix that reads the input.
gram_file::names gram_file::require(const model_config& config, std::int64_t layer,
                                    const layer_input& input) const {
  std::string missing;
  std::string others;
  for (const linear_module& module : linear_modules(config, layer)) {
    if (module.input != input) continue;
    names found{module.prefix + ".gram", module.prefix + ".mean_abs", module.prefix + ".tokens",
                module.in};
    if (source_.contains(found.gram)) {
      require_shape(source_, found.gram, {module.in, module.in});
      require_shape(source_, found.mean_abs, {module.in});
      require_shape(source_, found.tokens, {1});
      return found;
    }
    if (missing.empty()) {
      missing = std::move(found.gram);
    } else {
      others += (others.empty() ? ", and so is " : ", ") + found.gram;
    }
  }
  throw file_error(source_.path(), missing, "missing" + others);
}

ressvd::gram_state gram_file::read(const model_config& config, std::int64_t layer,
                                   const layer_input& input) const {
  const names name = require(config, layer, input);
  const std::int64_t n = name.features;
  const auto fail = [&](const std::string& tensor, const std::string& what) {
    throw file_error(source_.path(), tensor, what);
  };
  const std::int64_t least = input.expert == no_expert ? 1 : 0;
  ressvd::gram_state state{.features = n, .tokens = read_tokens(source_, name.tokens, least)};
  state.gram = read_gram(source_, name.gram, n);
  state.abs_sum = read_f64(source_, name.mean_abs, {n});
  for (std::int64_t i = 0; i < n; ++i) {
    double& magnitude = state.abs_sum[static_cast<std::size_t>(i)];
    if (magnitude < 0) fail(name.mean_abs, "element " + std::to_string(i) + " is negative");
    magnitude *= static_cast<double>(state.tokens);
  }
  return state;
}

} // namespace ressvd_llm
