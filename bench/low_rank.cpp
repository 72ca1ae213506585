// SPDX-License-Identifier: Apache-2.0
//
// The low-rank product on the CPU: low_rank.hpp.
#include "low_rank.hpp"

int main(int argc, char** argv) {
  bench::for_each_backend([](const auto& be) { bench::add_low_rank(be); });
  return bench::run(argc, argv);
}
