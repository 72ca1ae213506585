// SPDX-License-Identifier: Apache-2.0
//
// The cost of low precision in a Gram of activations, emulated on the CPU: inputs rounded to their
// type, products exact, sums in float, taken one by one. Processors round these sums to nearest.
// NVIDIA promises that tensor cores have float's precision, and promises neither rounding nor
// order. They have been found to truncate (Fasi, Higham, Mikaitis and Pranesh 2021, "Numerical
// behavior of NVIDIA tensor cores"), so this program truncates, without the few bits more that they
// keep.
//
// The activations have channels of very different sizes, a few of them enormous and of one sign, as
// language models do. Counters, against the Gram in double of the activations in float:
//   frobenius   ‖Ĝ − G‖_F / ‖G‖_F
//   worst       max |ĝ_ij − g_ij| / √(g_ii·g_jj)
//   excess      loss under G of the truncation at 40 % that is the best one under Ĝ, over the least
//               loss, less 1
//   predicted   the loss that Ĝ predicts for it, over the loss under G, less 1
//   damping     that Ĝ needs to be positive definite, relative to its mean diagonal
// and against the Gram of the rounded activations, which leaves the errors of the sums alone:
//   sum_frobenius, sum_worst
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "ressvd/methods/svd_llm.hpp"
#include "support.hpp"

namespace {

using namespace bench;

constexpr index_t features = 256;
constexpr index_t tokens = 16384;
constexpr int outliers = 4; ///< channels

/// features × tokens.
using activations = std::vector<float>;

activations make_activations() {
  eigen_backend<double> be;
  auto mix = be.allocate(features, features);
  auto latent = be.allocate(features, tokens);
  auto x = be.allocate(features, tokens);
  be.random_normal(mix, 1);
  be.random_normal(latent, 2);
  for (index_t k = 0; k < features; ++k)
    be.scale(std::pow(static_cast<double>(k + 1), -0.5), mix.ref().col_range(k, 1));
  be.gemm(op::none, op::none, 1.0, mix, latent, 0.0, x);
  auto scales = be.allocate(features, 1);
  be.random_normal(scales, 3);
  activations result;
  for (index_t t = 0; t < tokens; ++t) {
    for (index_t i = 0; i < features; ++i) {
      const double value = x.data()[i + t * features];
      // 1000, 300, 100 and 30 times the others, around a mean of their own.
      const double scale = i < outliers ? 1000 * std::pow(0.3, static_cast<double>(i))
                                        : std::exp(0.7 * scales.data()[i]);
      result.push_back(static_cast<float>(scale * (i < outliers ? 3 + value : value)));
    }
  }
  return result;
}

float as_tf32(float value) { // to nearest: 10 bits of fraction
  const auto bits = std::bit_cast<std::uint32_t>(value);
  return std::bit_cast<float>((bits + 0xfffu + ((bits >> 13) & 1u)) & 0xffffe000u);
}
float cut_to_tf32(float value) {
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) & 0xffffe000u);
}
template <class U>
float as_stored(float value) {
  return load<float>(store<U>(value));
}

/// sum + x·y, with an exact product.
float add_to_nearest(float sum, float x, float y) {
  return static_cast<float>(static_cast<double>(sum) +
                            static_cast<double>(x) * static_cast<double>(y));
}
float add_truncating(float sum, float x, float y) {
  const double exact = static_cast<double>(sum) + static_cast<double>(x) * static_cast<double>(y);
  const auto rounded = static_cast<float>(exact);
  const bool too_large = std::abs(static_cast<double>(rounded)) > std::abs(exact);
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(rounded) - (too_large ? 1u : 0u));
}

/// The Gram of x, `chunk` tokens at a time summed by `add` and then in double.
template <class Add>
matrix<double> gram_of(const activations& x, index_t chunk, Add add) {
  eigen_backend<double> be;
  auto gram = be.allocate(features, features);
  be.fill(gram, 0.0);
  std::vector<float> sums(static_cast<std::size_t>(features));
  for (index_t j = 0; j < features; ++j) {
    for (index_t first = 0; first < tokens; first += chunk) {
      std::fill(sums.begin(), sums.end(), 0.0f);
      for (index_t t = first; t < (std::min)(first + chunk, tokens); ++t) {
        const float* const column = x.data() + t * features;
        for (index_t i = j; i < features; ++i)
          sums[static_cast<std::size_t>(i)] =
              add(sums[static_cast<std::size_t>(i)], column[i], column[j]);
      }
      for (index_t i = j; i < features; ++i)
        gram.data()[i + j * features] += static_cast<double>(sums[static_cast<std::size_t>(i)]);
    }
  }
  be.mirror_lower(gram);
  return gram;
}

matrix<double> exact_gram(const activations& x) {
  eigen_backend<double> be;
  gram_accumulator sums(be, features);
  const std::vector<double> wide(x.begin(), x.end());
  sums.add(col_major(wide.data(), features, tokens), token_order::features_by_tokens);
  auto gram = be.allocate(features, features);
  be.copy(sums.gram(), gram);
  return gram;
}

double frobenius_error(const matrix<double>& g, const matrix<double>& exact) {
  double error = 0;
  double norm = 0;
  for (index_t k = 0; k < g.size(); ++k) {
    error += std::pow(g.data()[k] - exact.data()[k], 2);
    norm += std::pow(exact.data()[k], 2);
  }
  return std::sqrt(error / norm);
}

double worst_error(const matrix<double>& g, const matrix<double>& exact) {
  double worst = 0;
  const auto at = [](const matrix<double>& a, index_t i, index_t j) {
    return a.data()[i + j * features];
  };
  for (index_t j = 0; j < features; ++j) {
    for (index_t i = 0; i < features; ++i) {
      const double size = std::sqrt(at(exact, i, i) * at(exact, j, j));
      worst = (std::max)(worst, std::abs(at(g, i, j) - at(exact, i, j)) / size);
    }
  }
  return worst;
}

/// W and the best truncation of it under a Gram.
struct truncation {
  loss predicted;
  loss real; ///< under the exact Gram
  whitening_report whitening;
};

truncation truncate(const matrix<double>& gram, const matrix<double>& exact) {
  eigen_backend<double> be;
  auto w = be.allocate(features, features);
  be.random_normal(w, 4);
  calibration input(be, gram);
  const auto result =
      input.compress(w, methods::svd_llm{{.algorithm = svd_algorithm::exact}}, at_ratio(0.4));
  return {*result.report.activation_loss, activation_loss(be, w, result.factors, exact),
          *result.report.whitening};
}

struct setting {
  const char* name;
  float (*input)(float);
  bool truncating;
  index_t chunk;
};

void precision(benchmark::State& state, const setting& s) {
  static const activations x = make_activations();
  static const matrix<double> exact = exact_gram(x);
  static const double least = truncate(exact, exact).real.absolute;
  activations rounded = x;
  std::transform(x.begin(), x.end(), rounded.begin(), s.input);
  matrix<double> gram;
  for (auto _ : state) {
    gram = s.truncating ? gram_of(rounded, s.chunk, add_truncating)
                        : gram_of(rounded, s.chunk, add_to_nearest);
  }
  const auto of_rounded = exact_gram(rounded);
  const truncation t = truncate(gram, exact);
  state.counters["frobenius"] = frobenius_error(gram, exact);
  state.counters["worst"] = worst_error(gram, exact);
  state.counters["sum_frobenius"] = frobenius_error(gram, of_rounded);
  state.counters["sum_worst"] = worst_error(gram, of_rounded);
  state.counters["excess"] = t.real.absolute / least - 1;
  state.counters["predicted"] = t.predicted.absolute / t.real.absolute - 1;
  state.counters["damping"] = t.whitening.relative_damping;
  // t terms of one sign, each sum truncated: t·2⁻²³ at most, on top of the inputs' two roundings,
  // 2·2⁻⁸ for bfloat16, the coarsest.
  if (!(worst_error(gram, of_rounded) <= static_cast<double>(s.chunk) * 0x1p-23 &&
        worst_error(gram, exact) <= 0x1p-7)) {
    state.SkipWithError("the error exceeds its bound");
  }
}

const setting settings[] = {
    {"float/nearest/to_double", [](float v) { return v; }, false, 2048},
    {"float/nearest/to_float", [](float v) { return v; }, false, tokens},
    {"tf32/truncating/to_double", as_tf32, true, 2048},
    {"tf32_cut/truncating/to_double", cut_to_tf32, true, 2048},
    {"tf32/truncating/to_float", as_tf32, true, tokens},
    {"half/truncating/to_double", as_stored<half>, true, 2048},
    {"half/truncating/to_double_8192", as_stored<half>, true, 8192},
    {"half/truncating/to_float", as_stored<half>, true, tokens},
    {"bfloat16/truncating/to_double", as_stored<ressvd::bfloat16>, true, 2048},
    {"bfloat16/truncating/to_double_8192", as_stored<ressvd::bfloat16>, true, 8192},
    {"bfloat16/truncating/to_float", as_stored<ressvd::bfloat16>, true, tokens},
};

} // namespace

int main(int argc, char** argv) {
  for (const setting& s : settings) {
    benchmark::RegisterBenchmark((std::string("gram_precision/") + s.name).c_str(),
                                 [&s](benchmark::State& state) { precision(state, s); })
        ->Iterations(1)
        ->Unit(benchmark::kMillisecond);
  }
  return bench::run(argc, argv);
}
