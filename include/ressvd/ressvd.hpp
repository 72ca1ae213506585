// SPDX-License-Identifier: Apache-2.0
//
// ressvd: SVD compression of weight matrices. The library with its CPU backend; needs Eigen.
#pragma once

#include "ressvd/algorithms.hpp"
#include "ressvd/backend/eigen.hpp"
#include "ressvd/backend/eigen/implementation.hpp"
