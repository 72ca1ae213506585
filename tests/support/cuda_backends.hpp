// SPDX-License-Identifier: Apache-2.0
//
// Runs a suite on the GPU: include this header, then the suite.
#pragma once

#include <tuple>

#include "support/cuda_memory.hpp"

using test_backends = std::tuple<ressvd::cuda_backend<float>, ressvd::cuda_backend<double>>;
