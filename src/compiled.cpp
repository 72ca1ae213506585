// SPDX-License-Identifier: Apache-2.0
#include "ressvd/backend/eigen/implementation.hpp"

namespace ressvd::inline v0 {

template class eigen_backend<float>;
template class eigen_backend<double>;

} // namespace ressvd::inline v0
