// SPDX-License-Identifier: Apache-2.0
//
// The entry point of the test programs, for Catch2 2 and 3. Where a program's requirement is not
// met it names the tests it skipped and returns 4, which ctest reports as skipped, never as passed.
#include <cstdio>
#include <string>

#include "support/requirement.hpp"

#if __has_include(<catch2/catch_session.hpp>)
#include <catch2/catch_session.hpp>
#else
#define CATCH_CONFIG_RUNNER
#include <catch2/catch.hpp>
#endif

namespace {

constexpr int skipped = 4; // what Catch2 3 returns, and tells ctest, for skipped tests

bool only_lists(const Catch::ConfigData& config) {
#if __has_include(<catch2/catch_session.hpp>)
  return config.listTests || config.listTags || config.listReporters || config.listListeners;
#else
  return config.listTests || config.listTags || config.listReporters || config.listTestNamesOnly;
#endif
}

} // namespace

int main(int argc, char** argv) {
  Catch::Session session;
  if (const int error = session.applyCommandLine(argc, argv); error != 0) return error;
  const Catch::ConfigData& config = session.configData();
  const support::requirement missing = support::program_requirement();
  if (missing != nullptr && !config.showHelp && !only_lists(config)) {
    if (const std::string reason = missing(); !reason.empty()) {
      std::printf("Skipped, %s:\n", reason.c_str());
      for (const std::string& test : config.testsOrTags)
        std::printf("  %s\n", test.c_str());
      if (config.testsOrTags.empty()) std::printf("  all tests of this program\n");
      return skipped;
    }
  }
  return session.run() == 0 ? 0 : 1; // Catch2 2 returns the number of failures, which may be 4
}
