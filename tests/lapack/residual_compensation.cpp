// SPDX-License-Identifier: Apache-2.0
#include "support/lapack_backends.hpp"

#include "suites/residual_compensation.hpp"
