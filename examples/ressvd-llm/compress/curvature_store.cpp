// SPDX-License-Identifier: Apache-2.0
#include "compress/curvature_store.hpp"

#include <string>

#include "compress/gram_file.hpp"
#include "compress/scratch_file.hpp"
#include "io/checkpoint.hpp"
#include "io/error.hpp"

namespace ressvd_llm {
namespace {

// The lower triangle of a symmetric n × n matrix, row by row.
std::vector<double> packed(const std::vector<double>& h, std::int64_t n) {
  std::vector<double> result;
  result.reserve(static_cast<std::size_t>(n * (n + 1) / 2));
  for (std::int64_t i = 0; i < n; ++i)
    result.insert(result.end(), h.begin() + i * n, h.begin() + i * n + i + 1);
  return result;
}

std::vector<double> unpacked(const std::vector<double>& triangle, std::int64_t n) {
  std::vector<double> h(static_cast<std::size_t>(n * n));
  auto next = triangle.begin();
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j <= i; ++j, ++next)
      h[static_cast<std::size_t>(i * n + j)] = h[static_cast<std::size_t>(j * n + i)] = *next;
  return h;
}

struct names {
  explicit names(const linear_module& m)
      : gram(m.prefix + ".gradient_gram"),
        rows(m.prefix + ".row_importance"),
        tokens(m.prefix + ".gradient_tokens") {}

  std::string gram;
  std::string rows;
  std::string tokens;
};

} // namespace

std::vector<matrix_curvature> read_gradients(const checkpoint& source, const model_config& config,
                                             std::int64_t layer) {
  std::vector<matrix_curvature> result;
  for (const linear_module& module : linear_modules(config, layer)) {
    const names name(module);
    const std::int64_t n = module.out;
    matrix_curvature m{.module = module,
                       .outputs = {.features = n, .tokens = read_tokens(source, name.tokens)},
                       .row_importance = read_f64(source, name.rows, {n})};
    m.outputs.gram = read_gram(source, name.gram, n);
    for (const double rows : m.row_importance) {
      if (rows < 0) throw file_error(source.path(), name.rows, "has a negative element");
    }
    result.push_back(std::move(m));
  }
  return result;
}

std::filesystem::path curvature_store::file(std::int64_t layer) const {
  return directory_ / ("curvature-" + std::to_string(layer) + ".safetensors");
}

bool curvature_store::contains(std::int64_t layer) const {
  return std::filesystem::exists(file(layer));
}

void curvature_store::save(std::int64_t layer,
                           const std::vector<matrix_curvature>& matrices) const {
  std::vector<scratch_tensor<double>> list;
  for (const matrix_curvature& m : matrices) {
    const names name(m.module);
    const std::int64_t n = m.module.out;
    list.push_back({name.gram, {n * (n + 1) / 2}, packed(m.outputs.gram, n)});
    list.push_back({name.rows, {n}, m.row_importance});
    list.push_back({name.tokens, {1}, {static_cast<double>(m.outputs.tokens)}});
  }
  write_scratch(file(layer), list);
}

std::vector<matrix_curvature> curvature_store::load(const model_config& config,
                                                    std::int64_t layer) const {
  const checkpoint source = checkpoint::open_file(file(layer));
  std::vector<matrix_curvature> result;
  for (const linear_module& module : linear_modules(config, layer)) {
    const names name(module);
    const std::int64_t n = module.out;
    const auto fail = [&](const std::string& tensor, const std::string& what) {
      throw file_error(source.path(), tensor, what);
    };
    matrix_curvature m{.module = module,
                       .outputs = {.features = n, .tokens = read_tokens(source, name.tokens)},
                       .row_importance = read_f64(source, name.rows, {n})};
    m.outputs.gram = unpacked(read_f64(source, name.gram, {n * (n + 1) / 2}), n);
    for (std::int64_t i = 0; i < n; ++i) {
      if (m.outputs.gram[static_cast<std::size_t>(i * n + i)] < 0)
        fail(name.gram, "square " + std::to_string(i) + " is negative");
      if (m.row_importance[static_cast<std::size_t>(i)] < 0)
        fail(name.rows, "element " + std::to_string(i) + " is negative");
    }
    result.push_back(std::move(m));
  }
  return result;
}

} // namespace ressvd_llm
