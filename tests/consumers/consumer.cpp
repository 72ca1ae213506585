// SPDX-License-Identifier: Apache-2.0
//
// What every consumer builds.
#include <cstdio>

#include <ressvd/core/matrix_view.hpp>
#include <ressvd/version.hpp>

int main() {
  const float weight[6] = {1, 2, 3, 4, 5, 6};
  const auto view = ressvd::row_major(weight, 2, 3);
  std::printf("ressvd %s: %d x %d\n", RESSVD_VERSION_STRING, static_cast<int>(view.rows),
              static_cast<int>(view.cols));
  return view.ld == 3 ? 0 : 1;
}
