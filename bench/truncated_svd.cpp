// SPDX-License-Identifier: Apache-2.0
//
// One factorisation of a whitened matrix A (m × n, float, singular values known), by
//   subspace   to an excess loss of 1e-3 and of 1e-5
//   gram       one symmetric eigendecomposition in double: the route of Swift-SVD
//   exact      a dense SVD in float: Eigen's BDCSVD, LAPACK's gesdd
//   published  LAPACK: Cholesky of the Gram, explicit inverse, gesdd, two products
// Counters: gemms, the time as a multiple of one product of 2mn·min(m, n) flops on the same backend
// in the same process; excess, the loss beyond the optimum, relative to it. A benchmark fails when
// its loss is wrong.
//
//   --benchmark_filter=subspace/eigen/layer/2048x2048
#include <cstdint>
#include <functional>
#include <string>

#include "support.hpp"

namespace {

using namespace bench;

struct shape {
  index_t m, n;
};

index_t rank_at(shape s, int percent) {
  return static_cast<index_t>(static_cast<double>(100 - percent) / 100 *
                              static_cast<double>(s.m * s.n) / static_cast<double>(s.m + s.n));
}

/// ‖A − QQᵀA‖² / optimum − 1, from the residual itself.
template <class B>
double excess_loss(B& be, const known_matrix& known, block_of<B> q) {
  auto frame = be.frame();
  const auto coordinates = be.scratch(q.cols, known.a.cols());
  const auto residual = be.scratch(known.a.rows(), known.a.cols());
  be.copy(known.a.view(), residual);
  be.gemm(op::transpose, op::none, 1.0f, q, residual, 0.0f, coordinates);
  be.gemm(op::none, op::none, -1.0f, q, coordinates, 1.0f, residual);
  return be.dot(residual, residual) / known.optimum(q.cols) - 1;
}

template <class B>
void report(benchmark::State& state, B& be, shape s, double seconds, double excess,
            double tolerance) {
  const double gemm = gemm_seconds(be, s.m, (std::min)(s.m, s.n), s.n);
  state.counters["gemms"] = seconds / static_cast<double>(state.iterations()) / gemm;
  state.counters["excess"] = excess;
  // Rounding of A itself and of the residual: far below the smallest tolerance.
  if (!(excess <= tolerance + 1e-6)) state.SkipWithError("the loss is wrong");
}

template <class B>
void factor(benchmark::State& state, B be, spectrum kind, shape s, index_t rank,
            const svd_options& options) {
  const known_matrix& known = known_matrix_of(kind, s.m, s.n);
  svd_basis<B> basis;
  double seconds = 0;
  for (auto _ : state) {
    const double time =
        seconds_of([&] { basis = truncated_svd(be, known.a.view(), {}, {}, options); });
    state.SetIterationTime(time);
    seconds += time;
  }
  if (basis.report.algorithm != options.algorithm) {
    return state.SkipWithError("another algorithm ran");
  }
  // A dense SVD in float errs by eps of the largest singular value, everywhere.
  const double tolerance = options.algorithm == svd_algorithm::subspace ? options.tolerance
                           : options.algorithm == svd_algorithm::gram   ? 1e-5
                                                                        : 1e-2;
  state.counters["applications"] = basis.report.applications;
  state.counters["sweeps"] = static_cast<double>(basis.report.sweeps);
  report(state, be, s, seconds, excess_loss(be, known, basis.q.ref().left_cols(rank)), tolerance);
}

#ifdef RESSVD_BENCH_LAPACK
/// W·S is the given A for S = the Cholesky factor of a well-conditioned Gram; the time of the route
/// does not depend on W.
void published(benchmark::State& state, spectrum kind, shape s, index_t rank) {
  using detail::lapack::size;
  lapack_backend<float> be;
  const known_matrix& known = known_matrix_of(kind, s.m, s.n);
  const index_t k = (std::min)(s.m, s.n);
  auto gram = be.allocate(s.n, s.n);
  {
    auto frame = be.frame();
    const auto x = be.scratch(s.n, s.n);
    be.random_normal(x, 3);
    be.fill(gram.ref(), 0.0f);
    be.add_gram(block<const float>(x).view(), gram.ref());
    be.shift_diagonal(gram.ref(), static_cast<float>(s.n));
  }
  auto w = be.allocate(s.m, s.n);
  {
    auto frame = be.frame();
    const auto l = be.scratch(s.n, s.n);
    be.copy(std::as_const(gram).view(), l);
    be.potrf(l);
    be.copy(known.a.view(), w.ref());
    be.trsm(side::right, op::none, l, w.ref());
  }
  auto u = be.allocate(s.m, k);
  auto vt = be.allocate(k, s.n);
  auto right = be.allocate(rank, s.n);
  std::vector<float> sigma(static_cast<std::size_t>(k));
  double seconds = 0;
  for (auto _ : state) {
    auto frame = be.frame();
    const double time = seconds_of([&] {
      const auto l = be.scratch(s.n, s.n);
      const auto inverse = be.scratch(s.n, s.n);
      const auto ws = be.scratch(s.m, s.n);
      be.copy(std::as_const(gram).view(), l);
      be.potrf(l);
      be.copy(block<const float>(l).view(), inverse);
      LAPACKE_strtri(LAPACK_COL_MAJOR, 'L', 'N', size(s.n), inverse.data, size(s.n));
      be.trmm(side::right, op::none, l, w.ref(), ws);
      LAPACKE_sgesdd(LAPACK_COL_MAJOR, 'S', size(s.m), size(s.n), ws.data, size(s.m), sigma.data(),
                     u.ref().data, size(s.m), vt.ref().data, size(k));
      be.trmm(side::right, op::none, inverse, vt.ref().top_rows(rank), right.ref());
    });
    state.SetIterationTime(time);
    seconds += time;
  }
  report(state, be, s, seconds, excess_loss(be, known, u.ref().left_cols(rank)), 1e-2);
}
#endif

void add(const std::string& name, const std::function<void(benchmark::State&)>& run) {
  benchmark::RegisterBenchmark(name.c_str(), run)->UseManualTime()->Unit(benchmark::kMillisecond);
}

void add_all() {
  constexpr shape shapes[] = {{1024, 1024}, {2048, 2048},  {4096, 4096},
                              {4096, 1024}, {4096, 11008}, {11008, 4096}};
  for (const auto s : shapes) {
    for (const spectrum kind : {spectrum::layer, spectrum::flat}) {
      const std::string where =
          std::string("/") + name_of(kind) + "/" + std::to_string(s.m) + "x" + std::to_string(s.n);
      for_each_backend([&]<class B>(const B& be) {
        const std::string on = std::string("/") + name_of(be) + where;
        for (const int percent : {20, 40, 60}) {
          const index_t rank = rank_at(s, percent);
          const std::string ratio = "/" + std::to_string(percent);
          for (const double tolerance : {1e-3, 1e-5}) {
            const svd_options options{
                .rank = rank, .algorithm = svd_algorithm::subspace, .tolerance = tolerance};
            add((tolerance == 1e-3 ? "subspace" : "subspace_1e-5") + on + ratio,
                [=](benchmark::State& state) { factor(state, be, kind, s, rank, options); });
          }
        }
        // Their time does not depend on the rank, and hardly on the spectrum.
        const index_t rank = rank_at(s, 40);
        if (kind == spectrum::flat) return;
        for (const auto algorithm : {svd_algorithm::gram, svd_algorithm::exact}) {
          const svd_options options{.rank = rank, .algorithm = algorithm};
          add((algorithm == svd_algorithm::gram ? "gram" : "exact") + on,
              [=](benchmark::State& state) { factor(state, be, kind, s, rank, options); });
        }
      });
#ifdef RESSVD_BENCH_LAPACK
      if (kind == spectrum::layer) {
        const index_t rank = rank_at(s, 40);
        add("published/lapack" + where,
            [=](benchmark::State& state) { published(state, kind, s, rank); });
      }
#endif
    }
  }
}

} // namespace

int main(int argc, char** argv) {
  add_all();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
