// SPDX-License-Identifier: Apache-2.0
//
// The interface between a compiled kernel and the program that launches it.
#pragma once

namespace stand_in {

struct launch {
  unsigned grid[2];
  unsigned block[2];
  void (*run)(launch&);            ///< set by the kernel's entry
  alignas(16) char arguments[256]; ///< likewise: the arguments' values
  void* (*translate)(const void*); ///< device address → its bytes
};

/// Takes the values of a kernel's arguments, as cuLaunchKernel gets them.
using entry = void(void** arguments, launch& out);

} // namespace stand_in
