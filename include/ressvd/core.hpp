// SPDX-License-Identifier: Apache-2.0
//
// The words that every other header uses: scalars, views, owning matrices, errors, the backend
// concept. Includes neither Eigen nor CUDA, and compiles in a fraction of a second.
#pragma once

#include "ressvd/core/backend.hpp"
#include "ressvd/core/error.hpp"
#include "ressvd/core/matrix.hpp"
#include "ressvd/core/matrix_view.hpp"
#include "ressvd/core/progress.hpp"
#include "ressvd/core/scalar.hpp"
#include "ressvd/core/types.hpp"
#include "ressvd/core/workspace.hpp"
#include "ressvd/version.hpp"
