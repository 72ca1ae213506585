// SPDX-License-Identifier: Apache-2.0
//
// Catch2, version 2 or 3, in one spelling. Tests include this header and nothing of Catch2's own.
#pragma once

#include <string>

#if __has_include(<catch2/catch_test_macros.hpp>)
#include <catch2/catch_approx.hpp>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators_all.hpp>
#include <catch2/matchers/catch_matchers_all.hpp>
using Catch::Approx;
#else
#include <catch2/catch.hpp>
using Catch::Detail::Approx;
#endif

using Catch::Matchers::WithinAbs;
using Catch::Matchers::WithinRel;

/// Matches a message that contains `part`: CHECK_THROWS_WITH(expression, contains_text("rank 0")).
inline auto contains_text(const std::string& part) {
#if __has_include(<catch2/catch_test_macros.hpp>)
  return Catch::Matchers::ContainsSubstring(part);
#else
  return Catch::Matchers::Contains(part);
#endif
}
