// SPDX-License-Identifier: Apache-2.0
//
// Device memory where host memory belongs. None of the calls may compile.
#include "ressvd/compiled.hpp"
#include "ressvd/cuda.hpp"

void refused(ressvd::eigen_backend<float> cpu,
             ressvd::matrix_view<const float, ressvd::cuda_space> device) {
  ressvd::gram_accumulator<ressvd::eigen_backend<float>> gram(cpu, 4);
  gram.add(device);
  truncated_svd(cpu, device, {}, {}, 1);
  whiten(cpu, device);
}
