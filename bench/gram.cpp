// SPDX-License-Identifier: Apache-2.0
//
// Gram of activations, G += X·Xᵀ, against the product of the same shape on the same backend in the
// same process. Counters: gflops counts both triangles (2n²t), of_gemm is its share of the rate of
// a float product.
#include <type_traits>

#include "support.hpp"

namespace {

using namespace bench;

template <class U>
const char* type_name() {
  if constexpr (std::is_same_v<U, double>) return "double";
  if constexpr (std::is_same_v<U, float>) return "float";
  if constexpr (std::is_same_v<U, half>) return "half";
  return "bfloat16";
}

template <class U, class B>
void accumulate(benchmark::State& state, B be, index_t features, index_t tokens) {
  auto x = be.allocate(features, tokens);
  be.random_normal(x, 1);
  std::vector<U> stored(static_cast<std::size_t>(features * tokens));
  for (index_t i = 0; i < features * tokens; ++i)
    stored[static_cast<std::size_t>(i)] = store<U>(x.data()[i]);
  const auto batch = row_major(static_cast<const U*>(stored.data()), tokens, features);
  double seconds = 0;
  gram_accumulator sums(be, features);
  for (auto _ : state) {
    const double time = seconds_of([&] { sums.add(batch); });
    state.SetIterationTime(time);
    seconds += time;
  }
  double trace = 0;
  for (const U value : stored)
    trace += load<double>(value) * load<double>(value);
  trace *= static_cast<double>(state.iterations());
  double sum = 0;
  const auto g = sums.gram();
  for (index_t i = 0; i < features; ++i)
    sum += g.data[i + i * g.ld];
  if (!(std::abs(sum - trace) <= 1e-4 * trace)) state.SkipWithError("the Gram is wrong");
  const double flops = 2 * static_cast<double>(features) * static_cast<double>(features) *
                       static_cast<double>(tokens);
  const double rate = flops * static_cast<double>(state.iterations()) / seconds;
  state.counters["gflops"] = rate / 1e9;
  state.counters["of_gemm"] = rate * gemm_seconds(be, features, tokens, features) / flops;
}

void add_all() {
  for_each_backend([&]<class B>(const B& be) {
    for (const index_t features : {1024, 4096}) {
      const auto add = [&]<class U>(U) {
        const std::string name = std::string("gram/") + name_of(be) + "/" + type_name<U>() + "/" +
                                 std::to_string(features);
        benchmark::RegisterBenchmark(
            name.c_str(),
            [=](benchmark::State& state) { accumulate<U>(state, be, features, 4096); })
            ->UseManualTime()
            ->Unit(benchmark::kMillisecond);
      };
      add(float{});
      add(half{});
      add(ressvd::bfloat16{});
      add(double{});
    }
  });
}

} // namespace

int main(int argc, char** argv) {
  add_all();
  return bench::run(argc, argv);
}
