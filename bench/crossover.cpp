// SPDX-License-Identifier: Apache-2.0
//
// The ranks at which one algorithm of the truncated SVD becomes faster than another;
// svd_algorithm::automatic goes by them. Each algorithm runs at 1/50 to 3/5 of the shorter side.
#include <string>

#include "truncated_svd.hpp"

namespace {

using namespace bench;

template <class B>
void add_ranks(const B& be, shape s) {
  for (const int percent : {2, 5, 10, 15, 20, 30, 40, 60}) {
    const index_t rank = (std::min)(s.m, s.n) * percent / 100;
    const auto add_algorithm = [&](const char* name, svd_algorithm algorithm) {
      const svd_options options{.algorithm = algorithm};
      add(std::string("crossover/") + name + "/" + name_of(be) + "/" + name_of(s) + "/" +
              std::to_string(percent),
          [=](benchmark::State& state) {
            factor(state, be, synthetic(spectrum::layer, s), rank, options);
          });
    };
    add_algorithm("subspace", svd_algorithm::subspace);
    add_algorithm("deflated_gram", svd_algorithm::deflated_gram);
    add_algorithm("gram", svd_algorithm::gram);
  }
}

} // namespace

int main(int argc, char** argv) {
  for (const shape s : {shape{512, 512}, {1024, 1024}, {2048, 2048}, {512, 2048}, {2048, 512}})
    for_each_backend([&](const auto& be) { add_ranks(be, s); });
  return bench::run(argc, argv);
}
