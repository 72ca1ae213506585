// SPDX-License-Identifier: Apache-2.0
//
// A source that takes the CPU backend from ressvd::compiled and calls a method.
#include <cmath>
#include <cstdio>

#include <ressvd/compiled.hpp>

int main() {
  // Of rank 2: nothing is lost at that rank.
  float w[6 * 5];
  for (int i = 0; i < 6; ++i) {
    for (int j = 0; j < 5; ++j)
      w[5 * i + j] = static_cast<float>(i + 2 * j);
  }
  ressvd::eigen_backend<float> backend;
  const auto result =
      ressvd::methods::svd(backend, ressvd::row_major(w, 6, 5), {}, {.target = {.rank = 2}});
  std::printf("loss at rank %d: %g\n", static_cast<int>(result.report.rank),
              result.report.weight_loss.relative);
  return result.report.weight_loss.relative < 1e-6 ? 0 : 1;
}
