// SPDX-License-Identifier: Apache-2.0
//
// Does not compile: see ../CMakeLists.txt.
#include <ressvd/compiled.hpp>
