// SPDX-License-Identifier: Apache-2.0
//
// Runs a suite on the CPU: include this header, then the suite.
#pragma once

#include <tuple>

#include "ressvd/compiled.hpp"
#include "support/host_memory.hpp"

/// What every TEMPLATE_LIST_TEST_CASE of the suites is instantiated for.
using test_backends = std::tuple<ressvd::eigen_backend<float>, ressvd::eigen_backend<double>>;
