// SPDX-License-Identifier: Apache-2.0
//
// All methods on one matrix, each at the same rank, with the share of W and of its outputs that
// they lose: on the calibration tokens, on other tokens of the same kind, and against the original
// outputs when the inputs are those that reach the layer once the layers before it are compressed.
//
// compiled.hpp is the library without Eigen's headers; the program links ressvd::compiled.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "ressvd/compiled.hpp"

namespace {

using ressvd::index_t;
using backend = ressvd::eigen_backend<float>;
using view = ressvd::matrix_view<const float>;
namespace methods = ressvd::methods;

constexpr index_t out = 384;
constexpr index_t in = 512;
constexpr index_t tokens = 1024;

std::vector<float> gaussian(index_t count, std::mt19937_64& random) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values)
    value = normal(random);
  return values;
}

/// tokens × in activations: channel i of standard deviation about 10/(1 + i/8), every 150th channel
/// ten times that, neighbours correlated.
std::vector<float> activations(std::mt19937_64& random) {
  auto x = gaussian(tokens * in, random);
  for (index_t t = 0; t < tokens; ++t) {
    float* row = x.data() + t * in;
    for (index_t i = 1; i < in; ++i)
      row[i] = 0.6f * row[i - 1] + 0.8f * row[i];
    for (index_t i = 0; i < in; ++i)
      row[i] *= (i % 150 == 20 ? 100.0f : 10.0f) / (1 + static_cast<float>(i) / 8);
  }
  return x;
}

view rows_of(const std::vector<float>& x) {
  return ressvd::row_major(x.data(), tokens, in);
}

/// X·Wᵀ, tokens × out.
std::vector<float> outputs_of(const std::vector<float>& w, const std::vector<float>& x) {
  std::vector<float> y;
  for (index_t t = 0; t < tokens; ++t) {
    for (index_t o = 0; o < out; ++o) {
      const float* row = w.data() + o * in;
      y.push_back(std::inner_product(row, row + in, x.data() + t * in, 0.0f));
    }
  }
  return y;
}

/// ‖a − b‖² / ‖b‖².
double relative_loss(const std::vector<float>& a, const std::vector<float>& b) {
  double lost = 0;
  double total = 0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    lost += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
    total += std::pow(static_cast<double>(b[i]), 2);
  }
  return lost / total;
}

void run() {
  backend be;
  std::mt19937_64 random(1);
  const auto weights = gaussian(out * in, random);
  const auto x = activations(random);
  const auto other = activations(random);
  auto behind_compressed = x;
  const auto noise = activations(random);
  for (std::size_t i = 0; i < noise.size(); ++i)
    behind_compressed[i] += 0.2f * noise[i];
  auto gradients = gaussian(out * in, random);
  for (std::size_t i = 0; i < gradients.size(); ++i)
    gradients[i] *= gradients[i] * static_cast<float>(1 + i / static_cast<std::size_t>(in) % 7);

  // The statistics, gathered once for all methods; and once for the shifted inputs.
  ressvd::gram_accumulator gram(be, in);
  gram.add(rows_of(x));
  ressvd::calibration input(be, std::move(gram));
  ressvd::gram_accumulator unseen(be, in);
  unseen.add(rows_of(other));
  ressvd::shifted_input<backend> shifted(be, in);
  shifted.observe(rows_of(behind_compressed));
  ressvd::shifted_input<backend> towards_original(be, in, {.original_share = 1});
  towards_original.observe(rows_of(behind_compressed), rows_of(x));
  const auto importance =
      methods::fisher_row_importance(be, ressvd::row_major(gradients.data(), out, in));

  ressvd::weight<backend> prepared(be, ressvd::row_major(weights.data(), out, in));
  prepared.row_importance = importance.ref();
  const auto w = std::make_shared<const ressvd::weight<backend>>(std::move(prepared));
  const auto choice = ressvd::at_ratio(0.5).choose(out, in);
  std::printf("%-28s %10s %12s %12s %12s\n", "share lost", "weights", "calibration", "other tokens",
              "shifted in");
  const auto original = outputs_of(weights, x);
  std::vector<float> compressed(original.size());
  const auto show = [&](const char* name, const auto& result) {
    const auto on = [&](ressvd::block<const double> other_gram) {
      return ressvd::activation_loss(be, *w, result.factors, other_gram).relative;
    };
    ressvd::apply(be, result.factors, rows_of(behind_compressed).transposed(),
                  ressvd::row_major(compressed.data(), tokens, out).transposed());
    std::printf("%-28s %10.4f %12.4f %12.4f %12.4f\n", name, result.report.weight_loss.relative,
                on(input.gram()), on(unseen.gram()), relative_loss(compressed, original));
  };
  const auto compressed_by = [&](const auto& method) {
    return input.factor(w, method, {choice.rank}).at(choice);
  };
  show("SVD", compressed_by(methods::svd{}));
  show("FWSVD", compressed_by(methods::fwsvd{}));
  show("ASVD", compressed_by(methods::asvd{}));
  const auto whitened = input.factor(w, methods::svd_llm{}, {choice.rank});
  show("SVD-LLM", whitened.at(choice));
  show("SVD-LLM, updated U", shifted.update(whitened, methods::svd_llm{}, choice));
  show("SVD-LLM, original outputs", towards_original.update(whitened, methods::svd_llm{}, choice));
  show("AdaSVD", shifted.update(whitened, methods::adasvd{}, choice));
  show("ResSVD", compressed_by(methods::ressvd{}));
  show("tempered whitening, p = 0.6", compressed_by(methods::tempered{.power = 0.6}));
  show("the same, truncated anew",
       towards_original.truncate(*w, methods::tempered{.power = 0.6}, choice));
}

} // namespace

int main() {
  try {
    run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return EXIT_FAILURE;
  }
}
