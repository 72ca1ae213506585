// SPDX-License-Identifier: Apache-2.0
//
// The kernels on the CPU backend in float, compiled once for every program that includes
// ressvd/compiled.hpp.
#include "ressvd/backend/eigen.hpp"
#include "ressvd/compiled_kernels.hpp"

namespace ressvd {
inline namespace v0 {

extern template class eigen_backend<float>;
extern template class eigen_backend<double>;
RESSVD_COMPILED_KERNELS(, eigen_backend<float>);

} // namespace v0
} // namespace ressvd
