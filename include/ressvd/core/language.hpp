// SPDX-License-Identifier: Apache-2.0
//
// Stops a compilation that is not C++20 with one message in place of thousands.
#pragma once

#if defined(_MSVC_LANG) ? _MSVC_LANG < 202002L : __cplusplus < 202002L
#error "ressvd needs C++20: compile with -std=c++20 or later"
#include <ressvd_needs_cxx20> // no such file: compilers go on after #error, but not after this
#endif
