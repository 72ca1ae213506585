// SPDX-License-Identifier: Apache-2.0
//
// What a test program needs of the machine that it runs on, such as a device. Where it is missing
// no test runs, and the program says so.
#pragma once

#include <string>

namespace support {

/// Returns why no test can run here, or an empty text.
using requirement = std::string (*)();

/// The program's, null without one; a source of the program sets it before main.
inline requirement& program_requirement() {
  static requirement check = nullptr;
  return check;
}

} // namespace support
