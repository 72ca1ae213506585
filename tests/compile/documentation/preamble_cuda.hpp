// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "preamble.hpp"
#include "ressvd/cuda.hpp"

extern const cudaStream_t stream;
extern const cublasHandle_t handle;
extern const index_t features;
extern const ressvd::half* activations; // tokens × features
