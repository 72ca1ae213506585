// SPDX-License-Identifier: Apache-2.0
//
// The library with its CPU backend: SVD compression of weight matrices. Needs Eigen.
#pragma once

#include "ressvd/algorithms.hpp"
#include "ressvd/backend/eigen.hpp"
#include "ressvd/backend/eigen/implementation.hpp"
