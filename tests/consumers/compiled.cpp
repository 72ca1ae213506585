// SPDX-License-Identifier: Apache-2.0
//
// A source that takes the library from ressvd::compiled and calls a method.
#include <cstdio>
#include <utility>

#include <ressvd/compiled.hpp>

int main() {
  // W: 6 × 5, of rank 2, so that nothing is lost at that rank; 8 tokens of its 5 inputs.
  float w[6 * 5];
  for (int i = 0; i < 6; ++i) {
    for (int j = 0; j < 5; ++j)
      w[5 * i + j] = static_cast<float>(i + 2 * j);
  }
  float x[8 * 5];
  for (int i = 0; i < 8 * 5; ++i)
    x[i] = static_cast<float>(i * i % 11);

  ressvd::eigen_backend<float> backend;
  ressvd::gram_accumulator gram(backend, 5);
  gram.add(ressvd::row_major(x, 8, 5));
  ressvd::calibration input(backend, std::move(gram));
  const auto result =
      input.compress(ressvd::row_major(w, 6, 5), ressvd::methods::ressvd{}, ressvd::at_rank(2));
  std::printf("rank %d, loss %g\n", static_cast<int>(result.report.choice.rank),
              result.report.weight_loss.relative);
  return result.report.weight_loss.relative < 1e-6 ? 0 : 1;
}
