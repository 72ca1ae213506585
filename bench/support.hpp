// SPDX-License-Identifier: Apache-2.0
//
// What the benchmarks share: the backends at hand, the time of one product on them, matrices whose
// singular values are known, and the main program.
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <ctime>
#include <map>
#include <memory>
#include <numbers>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "ressvd/compiled.hpp"
#ifdef RESSVD_BENCH_LAPACK
#include "ressvd/backend/lapack.hpp"
#endif

namespace ressvd {
inline namespace v0 {
template <compute_scalar T>
class cuda_backend;
} // namespace v0
} // namespace ressvd

namespace bench {

using namespace ressvd;

template <class T>
constexpr const char* name_of(const eigen_backend<T>&) {
  return "eigen";
}
#ifdef RESSVD_BENCH_LAPACK
template <class T>
constexpr const char* name_of(const lapack_backend<T>&) {
  return "lapack";
}
#endif
template <class T>
constexpr const char* name_of(const cuda_backend<T>&) {
  return "cuda";
}

/// Calls f(backend in float) for every CPU backend of this build.
template <class F>
void for_each_backend(F f) {
  f(eigen_backend<float>{});
#ifdef RESSVD_BENCH_LAPACK
  f(lapack_backend<float>{});
#endif
}

/// Wall-clock time; with RESSVD_BENCH_CLOCK=cpu the processor time of the whole process, for
/// machines that others use.
inline double now() {
  static const char* const asked = std::getenv("RESSVD_BENCH_CLOCK");
  if (asked != nullptr && std::string(asked) == "cpu") {
    return static_cast<double>(std::clock()) / CLOCKS_PER_SEC;
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

template <class F>
double seconds_of(F f) {
  const double start = now();
  f();
  return now() - start;
}

/// The time of f and of all the work that it queued on the backend, without what was queued before.
template <class B, class F>
double seconds_on(B& be, F f) {
  be.synchronize();
  return seconds_of([&] {
    f();
    be.synchronize();
  });
}

/// Median time of c ← a·b, m × k times k × n, measured once in this process.
template <class B>
double gemm_seconds(B& be, index_t m, index_t k, index_t n) {
  static std::map<std::tuple<index_t, index_t, index_t>, double> known;
  double& seconds = known[{m, k, n}];
  if (seconds > 0) return seconds;
  using T = typename B::scalar;
  auto a = be.allocate(m, k);
  auto b = be.allocate(k, n);
  auto c = be.allocate(m, n);
  be.random_normal(a, 1);
  be.random_normal(b, 2);
  std::array<double, 5> times{};
  for (double& t : times) {
    t = seconds_on(be, [&] { be.gemm(op::none, op::none, T{1}, a, b, T{0}, c); });
  }
  std::sort(times.begin(), times.end());
  return seconds = times[times.size() / 2];
}

/// Singular values as whitened layers of language models have them (a few enormous ones, a power
/// law, an end that falls off), or a flat spectrum, the hardest for iterations.
enum class spectrum { layer, flat };

inline const char* name_of(spectrum kind) {
  return kind == spectrum::layer ? "layer" : "flat";
}

inline std::vector<double> singular_values(spectrum kind, index_t count) {
  std::vector<double> values;
  for (index_t i = 0; i < count; ++i) {
    const double x = static_cast<double>(i) / static_cast<double>(count);
    values.push_back(kind == spectrum::flat
                         ? 1.5 - x
                         : 3 * std::pow(static_cast<double>(i + 1), -0.35) * (1 - 0.9 * x));
  }
  if (kind == spectrum::layer) {
    values[0] = 3000;
    values[1] = 200;
    values[2] = 40;
  }
  return values;
}

/// The least loss of an approximation of this rank.
inline double truncation_loss(const std::vector<double>& sigma, index_t rank) {
  double tail = 0;
  for (auto i = sigma.size(); i-- > static_cast<std::size_t>(rank);)
    tail += sigma[i] * sigma[i];
  return tail;
}

/// A matrix and its singular values.
struct known_matrix {
  matrix<float> a;
  std::vector<double> sigma;

  known_matrix(matrix<float> values, std::vector<double> singular_values)
      : a(std::move(values)), sigma(std::move(singular_values)) {}

  /// Cosine transforms with random signs as singular vectors.
  known_matrix(spectrum kind, index_t m, index_t n)
      : sigma(singular_values(kind, (std::min)(m, n))) {
    eigen_backend<float> be;
    auto u = transform(be, m, 1);
    auto v = transform(be, n, 2);
    for (index_t i = 0; i < u.cols(); ++i)
      be.scale(static_cast<float>(sigma[static_cast<std::size_t>(i)]), u.ref().col_range(i, 1));
    a = be.allocate(m, n);
    be.gemm(op::none, op::transpose, 1.0f, u, v, 0.0f, a);
  }

  double optimum(index_t rank) const { return truncation_loss(sigma, rank); }

 private:
  matrix<float> transform(eigen_backend<float>& be, index_t size, std::uint64_t seed) const {
    const auto count = static_cast<index_t>(sigma.size());
    auto q = be.allocate(size, count);
    const auto n = static_cast<double>(size);
    std::mt19937_64 random(seed);
    for (index_t i = 0; i < size; ++i) {
      const double sign = (random() & 1) != 0 ? 1.0 : -1.0;
      for (index_t j = 0; j < count; ++j) {
        const double angle =
            std::numbers::pi * (static_cast<double>(i) + 0.5) * static_cast<double>(j) / n;
        q.data()[i + j * size] =
            static_cast<float>(sign * std::sqrt((j == 0 ? 1 : 2) / n) * std::cos(angle));
      }
    }
    return q;
  }
};

/// The matrix in a backend's memory.
template <class B>
matrix_of<B> placed(B& be, const known_matrix& known) {
  auto a = be.allocate(known.a.rows(), known.a.cols());
  be.upload(known.a, a);
  return a;
}

/// The last matrix asked for: benchmarks of one matrix stand side by side.
inline const known_matrix& known_matrix_of(spectrum kind, index_t m, index_t n) {
  static std::tuple<spectrum, index_t, index_t> held{};
  static std::unique_ptr<known_matrix> made;
  if (!made || held != std::tuple(kind, m, n)) {
    made.reset();
    made = std::make_unique<known_matrix>(kind, m, n);
    held = {kind, m, n};
  }
  return *made;
}

/// Runs the benchmarks that were registered before.
inline int run(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}

} // namespace bench
