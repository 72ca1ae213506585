// SPDX-License-Identifier: Apache-2.0
//
// The one place that states the version; CMakeLists.txt reads it from here.
#pragma once

#define RESSVD_VERSION_MAJOR 0
#define RESSVD_VERSION_MINOR 1
#define RESSVD_VERSION_PATCH 0
#define RESSVD_VERSION_STRING "0.1.0"
