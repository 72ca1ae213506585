// SPDX-License-Identifier: Apache-2.0
#include "support/eigen_backends.hpp"

#include "suites/adamw.hpp"
