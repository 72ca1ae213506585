// SPDX-License-Identifier: Apache-2.0
#include "support/cuda_backends.hpp"

#include "suites/adamw.hpp"
