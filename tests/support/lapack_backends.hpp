// SPDX-License-Identifier: Apache-2.0
//
// Runs a suite on LAPACK: include this header, then the suite.
#pragma once

#include <tuple>

#include "ressvd/algorithms.hpp"
#include "ressvd/backend/lapack.hpp"
#include "support/host_memory.hpp"

/// What every TEMPLATE_LIST_TEST_CASE of the suites is instantiated for.
using test_backends = std::tuple<ressvd::lapack_backend<float>, ressvd::lapack_backend<double>>;
