// SPDX-License-Identifier: Apache-2.0
//
// The library with its CUDA backend. Needs the CUDA toolkit's headers and neither nvcc nor Eigen.
// Include ressvd.hpp beside it for the CPU backend.
#pragma once

#include "ressvd/algorithms.hpp"
#include "ressvd/backend/cuda.hpp"
