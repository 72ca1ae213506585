// SPDX-License-Identifier: Apache-2.0
//
// The first of two translation units that include every public header. A function that is neither
// inline nor a template would be defined twice and fail to link.
#include <string>

#include "everything.hpp"

const char* version_of_the_other();
ressvd::index_t rows_of_the_other(const ressvd::matrix_view<const float>& a);

int main() {
  const float data[6] = {};
  const bool same = version_of_the_other() == std::string(RESSVD_VERSION_STRING) &&
                    rows_of_the_other(ressvd::row_major(data, 2, 3)) == 2;
  return same ? 0 : 1;
}
