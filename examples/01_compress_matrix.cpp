// SPDX-License-Identifier: Apache-2.0
//
// The smallest use: an engine has a weight matrix and activations in its own memory, row-major, and
// gets two thin matrices back.
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "ressvd/ressvd.hpp"

namespace {

using ressvd::index_t;

/// w: out × in weights, x: tokens × in activations.
ressvd::compressed_matrix<ressvd::eigen_backend<float>> compress(const float* w, index_t out,
                                                                 index_t in, const float* x,
                                                                 index_t tokens) {
  ressvd::eigen_backend<float> be;
  ressvd::gram_accumulator gram(be, in);
  gram.add(ressvd::row_major(x, tokens, in));     // once a batch
  ressvd::calibration input(be, std::move(gram)); // serves all weights that read x
  return input.compress(ressvd::row_major(w, out, in), ressvd::methods::ressvd{},
                        ressvd::at_ratio(0.4));
}

/// Activations as language models have them: few directions carry most of the energy, and single
/// channels are far larger than the rest.
class activation_source {
 public:
  explicit activation_source(index_t features)
      : features_(features), directions_(gaussian(latent * features, random_)) {}

  std::vector<float> draw(index_t tokens) {
    const auto strengths = gaussian(tokens * latent, random_);
    auto x = gaussian(tokens * features_, random_);
    for (index_t t = 0; t < tokens; ++t) {
      for (index_t i = 0; i < features_; ++i) {
        float& value = x[static_cast<std::size_t>(t * features_ + i)];
        value *= 0.3f;
        for (index_t k = 0; k < latent; ++k) {
          value += strengths[static_cast<std::size_t>(t * latent + k)] *
                   directions_[static_cast<std::size_t>(k * features_ + i)] /
                   static_cast<float>(1 + k);
        }
        if (i % 200 == 7) value *= 50;
      }
    }
    return x;
  }

  static std::vector<float> gaussian(index_t count, std::mt19937_64& random) {
    std::normal_distribution<float> normal;
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& value : values)
      value = normal(random);
    return values;
  }

 private:
  static constexpr index_t latent = 32;
  index_t features_;
  std::mt19937_64 random_{1};
  std::vector<float> directions_; // latent × features
};

/// ‖Y − X·Wᵀ‖² / ‖X·Wᵀ‖² for y: tokens × out, x: tokens × in, w: out × in.
double relative_loss(const std::vector<float>& y, const std::vector<float>& x,
                     const std::vector<float>& w, index_t tokens, index_t out, index_t in) {
  double lost = 0;
  double total = 0;
  for (index_t t = 0; t < tokens; ++t) {
    for (index_t o = 0; o < out; ++o) {
      const float* row = w.data() + o * in;
      const double exact = std::inner_product(row, row + in, x.data() + t * in, 0.0);
      const double error = static_cast<double>(y[static_cast<std::size_t>(t * out + o)]) - exact;
      lost += error * error;
      total += exact * exact;
    }
  }
  return lost / total;
}

void run() {
  constexpr index_t out = 512;
  constexpr index_t in = 768;
  constexpr index_t tokens = 2048;
  activation_source source(in);
  std::mt19937_64 random(2);
  const auto w = activation_source::gaussian(out * in, random);
  const auto x = source.draw(tokens);

  const auto [factors, report] = compress(w.data(), out, in, x.data(), tokens);
  std::printf("W: %lld x %lld, %lld parameters\n", static_cast<long long>(out),
              static_cast<long long>(in), static_cast<long long>(out * in));
  std::printf("U: %lld x %lld and V: %lld x %lld, %lld parameters, %.1f %% fewer\n",
              static_cast<long long>(factors.u.rows()), static_cast<long long>(factors.u.cols()),
              static_cast<long long>(factors.v.rows()), static_cast<long long>(factors.v.cols()),
              static_cast<long long>(factors.parameters()), 100 * report.compression_ratio);
  std::printf("weight loss      %.4f of |W|^2\n", report.weight_loss.relative);
  std::printf("activation loss  %.4f of |WX|^2 on the calibration tokens\n",
              report.activation_loss->relative);

  // The engine goes on with y = U(Vx), here for tokens outside the calibration.
  constexpr index_t new_tokens = 64;
  ressvd::eigen_backend<float> be;
  const auto inputs = source.draw(new_tokens);
  std::vector<float> outputs(static_cast<std::size_t>(new_tokens * out));
  ressvd::apply(be, factors, ressvd::row_major(inputs.data(), new_tokens, in).transposed(),
                ressvd::row_major(outputs.data(), new_tokens, out).transposed());
  std::printf("                 %.4f on new tokens\n",
              relative_loss(outputs, inputs, w, new_tokens, out, in));
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
