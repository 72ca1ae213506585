// SPDX-License-Identifier: Apache-2.0
//
// Host memory where device memory belongs. None of the calls may compile.
#include "ressvd/cuda.hpp"

void refused(ressvd::cuda_backend<float> gpu, ressvd::matrix_view<const float> host) {
  ressvd::gram_accumulator<ressvd::cuda_backend<float>> gram(gpu, 4);
  gram.add(host);
  truncated_svd(gpu, host, {}, {}, 1);
  whiten(gpu, host);
}
