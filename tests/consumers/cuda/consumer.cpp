// SPDX-License-Identifier: Apache-2.0
//
// A Gram on the GPU, where there is one; otherwise it is enough that this links.
#include <cstdio>

#include <ressvd/cuda.hpp>

int main() {
  if (ressvd::cuda_device_count() == 0) {
    std::puts("linked; not run, there is no CUDA device");
    return 0;
  }
  const double activations[6] = {1, 2, 3, 4, 5, 6}; // two tokens of three features
  ressvd::cuda_backend<double> backend;
  auto x = backend.allocate(3, 2);
  backend.upload({activations, 3, 2, 3}, x);
  ressvd::gram_accumulator gram(backend, 3);
  gram.add(x.view(), ressvd::token_order::features_by_tokens);

  double g[9] = {};
  backend.download(gram.gram(), {g, 3, 3, 3});
  std::printf("ressvd %s: G(2, 0) = %g\n", RESSVD_VERSION_STRING, g[2]);
  return g[2] == 27 ? 0 : 1;
}
