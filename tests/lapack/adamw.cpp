// SPDX-License-Identifier: Apache-2.0
#include "support/lapack_backends.hpp"

#include "suites/adamw.hpp"
