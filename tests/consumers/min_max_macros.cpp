// SPDX-License-Identifier: Apache-2.0
//
// A consumer whose platform headers define min and max as macros, after the standard library's
// headers as on Windows.
#include <bits/stdc++.h>

#define min(a, b) ((a) < (b) ? (a) : (b))
#define max(a, b) ((a) > (b) ? (a) : (b))

#include "consumer.cpp"
