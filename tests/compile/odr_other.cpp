// SPDX-License-Identifier: Apache-2.0
//
// The second of two translation units that include every public header.
#include "everything.hpp"

const char* version_of_the_other();
ressvd::index_t rows_of_the_other(const ressvd::matrix_view<const float>& a);

const char* version_of_the_other() {
  return RESSVD_VERSION_STRING;
}

ressvd::index_t rows_of_the_other(const ressvd::matrix_view<const float>& a) {
  return a.rows;
}
