// SPDX-License-Identifier: Apache-2.0
//
// One factorisation of a whitened matrix of known singular values on the CPU: by the library's
// algorithms (truncated_svd.hpp; exact is LAPACK's gesdd and our QR iteration over Eigen's
// products) and by those of cpu_baselines.hpp.
//
//   --benchmark_filter=subspace/eigen/layer/2048x2048
#include "cpu_baselines.hpp"

int main(int argc, char** argv) {
  using namespace bench;
  for_each_matrix([](spectrum kind, shape s) {
    const matrix_set set = synthetic(kind, s);
    const bool others = kind == spectrum::layer;
    for_each_backend([&](const auto& be) { add_factorings(be, set, others); });
    if (others) add_baselines(set);
  });
  return run(argc, argv);
}
