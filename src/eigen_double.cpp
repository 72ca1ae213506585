// SPDX-License-Identifier: Apache-2.0
//
// The CPU backend in double, compiled once for every program that includes ressvd/compiled.hpp.
#include "ressvd/backend/eigen/implementation.hpp"

template class ressvd::eigen_backend<double>;
