// SPDX-License-Identifier: Apache-2.0
#include "compress/disk_estimate.hpp"

#include <algorithm>
#include <cstdio>
#include <optional>
#include <string>
#include <system_error>
#include <variant>

#include "compress/factoring.hpp"
#include "io/error.hpp"

namespace ressvd_llm {
namespace {

std::uint64_t bytes(std::int64_t count, std::int64_t size) {
  return static_cast<std::uint64_t>(count) * static_cast<std::uint64_t>(size);
}

std::uint64_t bytes_below(const std::filesystem::path& directory) {
  std::uint64_t sum = 0;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(directory, ignored)) {
    if (entry.is_regular_file(ignored)) sum += entry.file_size(ignored);
  }
  return sum;
}

// The basis at the largest rank, the residual stage at each, and three numbers per rank as text.
std::uint64_t basis_bytes(const linear_module& module, const rank_list& ranks,
                          const ressvd::any_method& method) {
  if (ranks.empty()) return 0;
  // A metric of the rows alone makes a basis of the inputs' space.
  const bool rows_alone = std::holds_alternative<ressvd::methods::fwsvd>(method.chosen);
  // Metrics of both sides make one of either.
  const bool both = std::holds_alternative<ressvd::methods::kfac_svd>(method.chosen);
  const std::int64_t sides = both ? module.in + module.out : rows_alone ? module.in : module.out;
  std::int64_t vectors = sides * ranks.front();
  if (const auto residual = method.residual()) {
    for (const std::int64_t rank : ranks) {
      ressvd::residual_options plan = residual->options;
      plan.rank = rank;
      vectors += (both ? sides : module.out) *
                 (rank - ressvd::intermediate_rank(module.out, module.in, plan));
    }
  }
  constexpr std::int64_t digits = 22;
  return bytes(vectors, 4) + bytes(3 * (std::min)(module.out, module.in), digits);
}

// What a refinement keeps of blocks beside their factors, at most.
std::uint64_t trained_beside(const refine_options& options, const model_config& config) {
  constexpr std::uint64_t report = 512;
  std::int64_t parameters = 0;
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    for (const linear_module& module : linear_modules(config, layer))
      parameters += options.dense ? module.out * module.in : 0;
    if (options.norms) parameters += 2 * config.hidden_size + 2 * config.head_dim;
  }
  return bytes(parameters, 4) + static_cast<std::uint64_t>(config.layers) * report;
}

std::string gibibytes(std::uint64_t count) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3f GiB", static_cast<double>(count) / (1 << 30));
  return text;
}

} // namespace

disk_estimate estimate_disk(const compress_options& options, const model_config& config,
                            const checkpoint& source, const candidate_ranks& wanted,
                            double kept_share) {
  const ressvd::any_method method = method_of(options);
  const auto stored = [&](const std::string& name) {
    const checkpoint::description tensor = source.describe(name);
    if (!options.type) {
      // Quantised matrices become f16; what a GGUF file keeps as it is takes less.
      const std::optional<dtype> type = parse_dtype(tensor.type);
      const bool quantised = type && is_quantised(*type);
      return quantised ? static_cast<std::uint64_t>(bytes_of(dtype::f16, tensor.elements))
                       : tensor.bytes;
    }
    return static_cast<std::uint64_t>(bytes_of(*options.type, tensor.elements));
  };
  disk_estimate estimate;
  // With what the headers, the journal and the scratch files say of each tensor.
  constexpr std::uint64_t description = 512;
  for (const std::string& name : source.names())
    estimate.tensors += stored(name) + description;
  double removed = 0;
  double factors = 0;
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    const auto modules = linear_modules(config, layer);
    for (std::size_t i = 0; i < modules.size(); ++i) {
      estimate.bases += basis_bytes(modules[i], wanted[layer][i], method);
      if (needs_curvature(options))
        estimate.curvature += bytes(modules[i].out * (modules[i].out + 3) / 2 + 1, 8) + description;
      removed += (1 - kept_share) * static_cast<double>(stored(modules[i].weight_name()));
      if (options.form == ressvd::factored_form::pivoted) // the order of the rows
        estimate.tensors += bytes(modules[i].out, 4);
      factors += kept_share * static_cast<double>(bytes(matrix_parameters(modules[i]), 4));
    }
  }
  if (options.format == output_format::factored)
    estimate.tensors -= static_cast<std::uint64_t>(removed);
  if (refits(options) || refines(options)) {
    estimate.refits = static_cast<std::uint64_t>(factors);
    if (refines(options)) estimate.refits += trained_beside(options.refine, config);
  }
  return estimate;
}

void require_disk(const std::filesystem::path& partial, std::uint64_t needed) {
  const std::uint64_t present = bytes_below(partial);
  const std::uint64_t available = std::filesystem::space(partial).available;
  if (needed <= present || needed - present <= available) return;
  throw usage_error(partial.string() + ": the run needs an estimated " +
                    gibibytes(needed - present) + " of disk, of which " + gibibytes(available) +
                    " are free");
}

} // namespace ressvd_llm
