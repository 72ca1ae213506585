// SPDX-License-Identifier: Apache-2.0
#include "ui/progress.hpp"

#include <cstddef>
#include <cstdio>
#include <string>

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "llm/io/limits.hpp"
#include "support/catch.hpp"

using namespace llm_test;

namespace {

void work() {
  ressvd_llm::progress progress("factoring", 4);
  for (int step = 0; step < 4; ++step)
    progress.advance();
}

} // namespace

TEST_CASE("progress is quiet where there is no terminal", "[progress]") {
  CHECK(output_of(2, work).empty());
}

TEST_CASE("progress shows share and time left on a terminal and clears its line", "[progress]") {
  const int terminal = ::posix_openpt(O_RDWR | O_NOCTTY);
  if (terminal < 0) return; // a machine without pseudo-terminals
  REQUIRE(::grantpt(terminal) == 0);
  REQUIRE(::unlockpt(terminal) == 0);
  const int far_end = ::open(::ptsname(terminal), O_RDWR | O_NOCTTY);
  REQUIRE(far_end >= 0);
  std::fflush(nullptr);
  const int before = ::dup(2);
  ::dup2(far_end, 2);
  work();
  ::dup2(before, 2);
  ::close(before);
  // Each write arrives by itself; after the last one reading ends, as the far end is closed.
  ::close(far_end);
  std::string shown;
  char part[256];
  for (ssize_t count = 0; (count = ::read(terminal, part, sizeof part)) > 0;)
    shown.append(part, static_cast<std::size_t>(count));
  ::close(terminal);
  REQUIRE(shown.size() > 4);
  CHECK_THAT(shown, contains_text("factoring  25 %, 0:00 left"));
  CHECK(shown.substr(shown.size() - 4) == "\r\x1b[K");
}
