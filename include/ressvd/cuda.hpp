// SPDX-License-Identifier: Apache-2.0
//
// Every kernel and method with the CUDA backend. Needs the CUDA toolkit's headers, neither nvcc nor
// Eigen; include ressvd.hpp beside it for the CPU backend.
#pragma once

#include "ressvd/algorithms.hpp"
#include "ressvd/backend/cuda.hpp"
