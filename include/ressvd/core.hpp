// SPDX-License-Identifier: Apache-2.0
//
// The core vocabulary: scalars, views, owning matrices, errors, the backend concept. Neither Eigen
// nor CUDA.
#pragma once

#include "ressvd/core/backend.hpp"
#include "ressvd/core/error.hpp"
#include "ressvd/core/matrix.hpp"
#include "ressvd/core/matrix_view.hpp"
#include "ressvd/core/scalar.hpp"
#include "ressvd/core/types.hpp"
#include "ressvd/core/workspace.hpp"
#include "ressvd/version.hpp"
