// SPDX-License-Identifier: Apache-2.0
//
// What every consumer builds: all of the library parsed, and enough of it instantiated to run a
// kernel on the CPU. The decompositions, which take Eigen a minute to compile, are left to the
// tests.
#include <cstdio>

#include <ressvd/ressvd.hpp>

int main() {
  // Two tokens of three features; G = XXᵀ.
  const float activations[6] = {1, 2, 3, 4, 5, 6};
  ressvd::eigen_backend<double> backend;
  ressvd::gram_accumulator gram(backend, 3);
  gram.add(ressvd::row_major(activations, 2, 3));

  double g[9] = {};
  backend.copy(gram.gram(), ressvd::row_major(g, 3, 3));
  std::printf("ressvd %s: G(2, 0) = %g\n", RESSVD_VERSION_STRING, g[6]);

  bool refused = false;
  try {
    gram.add(ressvd::row_major(activations, 3, 2));
  } catch (const std::invalid_argument&) {
    refused = true;
  }
  return g[6] == 27 && refused ? 0 : 1;
}
