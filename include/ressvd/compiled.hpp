// SPDX-License-Identifier: Apache-2.0
//
// The same library as ressvd.hpp, with the CPU backend and the kernels on it taken from the
// compiled target ressvd::compiled instead of from headers: a translation unit compiles in a
// fraction of the time and does not see Eigen.
#pragma once

#include "ressvd/algorithms.hpp"
#include "ressvd/backend/eigen.hpp"
#include "ressvd/compiled_kernels.hpp"

namespace ressvd {
inline namespace v0 {

extern template class eigen_backend<float>;
extern template class eigen_backend<double>;
RESSVD_COMPILED_KERNELS(extern, eigen_backend<float>);
RESSVD_COMPILED_KERNELS(extern, eigen_backend<double>);

} // namespace v0
} // namespace ressvd

#undef RESSVD_COMPILED_KERNELS
