// SPDX-License-Identifier: Apache-2.0
//
// On the current CUDA device:
//   subspace, projector, gram, exact
//                           the library's factorisations of truncated_svd.hpp; exact is cuSOLVER's
//                           Xgesvdp
//   gesvd                   exact by cuSOLVER's Xgesvd (cuda_svd::qr_iteration)
//   gesvdj                  cuSOLVER's SVD by Jacobi's method in float
//   syevd                   eigh of a given AAᵀ in double: the route of Swift-SVD without its
//                           product
//   gram_sum                Gram accumulation; of_gemm: its rate (both triangles, 2n²t flops) over
//                           that of a product of bfloat16, 8192³, in the same process
//   llama_7b                the 224 matrices of a model of LLaMA-7B's shape at 20 %, with their 128
//                           whitenings
//   low_rank                low_rank.hpp
//   low_rank_rows           y = U(V·x) for few vectors and factors by rows against cuBLAS's dense
//                           product; eight matrices in a CUDA graph, replayed
//   pivoted_rows            the same pair against the pivoted form; at_rank and at_size: the pair's
//                           time over the pivoted one's at its rank and at its size
// Every benchmark checks its result once, outside the timed region, and fails if it is wrong.
// Without a device the program says that it was skipped.
#include "ressvd/cuda.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "low_rank.hpp"
#include "truncated_svd.hpp"

namespace {

using namespace bench;
using backend_f = cuda_backend<float>;
using backend_d = cuda_backend<double>;

/// Statuses of cuBLAS and cuSOLVER, of which 0 is success.
template <class Status>
void check(Status status) {
  if (status != Status{})
    throw std::runtime_error("a CUDA library returned " + std::to_string(static_cast<int>(status)));
}

/// Economy SVD at cuSOLVER's own tolerance. A run that did not converge is found by its loss.
void gesvdj(benchmark::State& state, backend_f be, const matrix_set& set, index_t rank) {
  const auto m = static_cast<int>(set.size.m);
  const auto n = static_cast<int>(set.size.n);
  const int k = (std::min)(m, n);
  cuda_context& context = *be.context();
  measure(state, be, set, dense_tolerance, [&](const known_matrix& known, auto timed) {
    auto a = placed(be, known);
    auto s = be.allocate(k, 1);
    auto u = be.allocate(m, k);
    auto v = be.allocate(n, k);
    gesvdjInfo_t params = nullptr;
    check(cusolverDnCreateGesvdjInfo(&params));
    int elements = 0;
    check(cusolverDnSgesvdj_bufferSize(context.cusolver(), CUSOLVER_EIG_MODE_VECTOR, 1, m, n,
                                       a.data(), m, s.data(), u.data(), m, v.data(), n, &elements,
                                       params));
    const auto work = context.allocate<float>(elements);
    const auto info = context.allocate<int>(1);
    timed([&] {
      check(cusolverDnSgesvdj(context.cusolver(), CUSOLVER_EIG_MODE_VECTOR, 1, m, n, a.data(), m,
                              s.data(), u.data(), m, v.data(), n, work.get(), elements, info.get(),
                              params));
    });
    check(cusolverDnDestroyGesvdjInfo(params));
    auto q = be.allocate(m, rank);
    be.copy(u.ref().left_cols(rank), q);
    return q;
  });
}

void syevd(benchmark::State& state, backend_f be, const matrix_set& set, index_t rank) {
  const auto [m, n] = set.size;
  backend_d be64(be);
  std::vector<double> values(static_cast<std::size_t>(m));
  measure(state, be, set, 1e-5, [&, m = m, n = n](const known_matrix& known, auto timed) {
    const auto a = placed(be, known);
    auto frame = be64.frame();
    const auto wide = be64.scratch(m, n);
    const auto gram = be64.scratch(m, m);
    be64.copy(a, wide);
    be64.gemm(op::none, op::transpose, 1.0, wide, wide, 0.0, gram);
    timed([&] { be64.eigh(gram, values); });
    auto q = be.allocate(m, rank);
    be.copy(gram.col_range(m - rank, rank), q); // eigenvalues ascend
    return q;
  });
}

/// Flops a second of a large product of bfloat16, summed in float and stored in bfloat16.
double bfloat16_rate(backend_f& be) {
  static double rate = 0;
  if (rate > 0) return rate;
  constexpr index_t n = 8192;
  cuda_context& context = *be.context();
  const auto a = context.allocate<ressvd::bfloat16>(n * n);
  const auto b = context.allocate<ressvd::bfloat16>(n * n);
  const auto c = context.allocate<ressvd::bfloat16>(n * n);
  {
    auto frame = be.frame();
    const auto random = be.scratch(n, n);
    be.random_normal(random, 1);
    for (const auto& target : {a, b})
      be.copy(random, cuda_col_major(target.get(), n, n));
  }
  const float one = 1;
  const float zero = 0;
  std::vector<double> times;
  for (int i = 0; i < 6; ++i) {
    times.push_back(seconds_on(be, [&] {
      check(cublasGemmEx_64(context.cublas(), CUBLAS_OP_N, CUBLAS_OP_T, n, n, n, &one, a.get(),
                            CUDA_R_16BF, n, b.get(), CUDA_R_16BF, n, &zero, c.get(), CUDA_R_16BF, n,
                            CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
    }));
  }
  std::sort(times.begin() + 1, times.end()); // the first one loads
  return rate = 2.0 * n * n * n / times[3];
}

/// Calls `timed` as often as asked; returns all seconds.
template <class F>
double measure_calls(benchmark::State& state, backend_f& be, F timed) {
  double seconds = 0;
  for (auto _ : state) {
    const double time = seconds_on(be, timed);
    state.SetIterationTime(time);
    seconds += time;
  }
  return seconds;
}

template <class U>
void accumulate(benchmark::State& state, index_t features, index_t tokens,
                const cuda_options& options) {
  backend_f be(cuda_context::owning(options));
  const auto stored = be.context()->allocate<U>(features * tokens);
  const auto batch = cuda_row_major<const U>(stored.get(), tokens, features);
  double trace = 0;
  {
    auto frame = be.frame();
    const auto x = be.scratch(features, tokens);
    be.random_normal(x, 1);
    be.copy(x, cuda_row_major(stored.get(), tokens, features).transposed());
    be.copy(batch.transposed(), x);
    trace = be.dot(x, x);
  }
  gram_accumulator sums(be, features, {.check = finite_check::deferred});
  sums.add(batch); // loads what is loaded once
  const double seconds = measure_calls(state, be, [&] { sums.add(batch); });
  const auto adds = static_cast<double>(sums.tokens() / tokens);
  std::vector<double> diagonal(static_cast<std::size_t>(features));
  backend_d(be).diagonal(sums.gram(), diagonal);
  double found = 0;
  for (const double d : diagonal)
    found += d;
  if (!(std::abs(found - adds * trace) <= 1e-4 * adds * trace)) {
    state.SkipWithError("the Gram is wrong");
  }
  const double flops = 2 * static_cast<double>(features) * static_cast<double>(features) *
                       static_cast<double>(tokens) * static_cast<double>(state.iterations());
  const double rate = flops / seconds;
  state.counters["gflops"] = rate / 1e9;
  state.counters["of_gemm"] = rate / bfloat16_rate(be);
}

/// One kind of matrix in a layer: W·S is a matrix of known singular values, S the Cholesky factor
/// of a well-conditioned Gram.
struct weights {
  shape dims;
  matrix<float, cuda_space> w;
  std::vector<double> sigma; ///< of W·S
  method_report report = {};
};

class llama_7b {
 public:
  explicit llama_7b(backend_f be) : be_(std::move(be)) {
    make_gram(4096);
    make_gram(11008);
    for (const shape dims : {shape{4096, 4096}, {11008, 4096}, {4096, 11008}})
      make_weights(dims);
  }

  /// Whitens 4 inputs and compresses 7 matrices for each layer.
  template <class Method>
  void compress(const Method& method) {
    constexpr int layers = 32;
    // An input's matrices: q, k, v; o; gate, up; down.
    constexpr std::pair<std::size_t, int> inputs[] = {{0, 3}, {0, 1}, {1, 2}, {2, 1}};
    for (int layer = 0; layer < layers; ++layer) {
      for (const auto& [kind, count] : inputs) {
        weights& of_kind = weights_[kind];
        calibration<backend_f> input(be_, grams_.at(of_kind.dims.n));
        for (int i = 0; i < count; ++i)
          of_kind.report = input.compress(of_kind.w, method, at_ratio(0.2)).report;
      }
    }
  }

  /// The activation loss beyond the least one at the intermediate rank, relative to it; the largest
  /// of all shapes.
  double excess() const {
    double worst = -1;
    for (const weights& kind : weights_) {
      const double optimum = truncation_loss(kind.sigma, kind.report.intermediate_rank);
      worst = (std::max)(worst, kind.report.activation_loss->absolute / optimum - 1);
    }
    return worst;
  }

 private:
  void make_gram(index_t n) {
    backend_d be64(be_);
    auto gram = be64.allocate(n, n);
    auto frame = be64.frame();
    const auto x = be64.scratch(n, n);
    be64.random_normal(x, 3);
    be64.fill(gram, 0.0);
    be64.add_gram(x, gram);
    be64.shift_diagonal(gram, static_cast<double>(n));
    be64.mirror_lower(gram);
    grams_[n] = std::move(gram);
  }

  void make_weights(shape dims) {
    backend_d be64(be_);
    const known_matrix& known = known_matrix_of(spectrum::layer, dims.m, dims.n);
    const auto a = placed(be_, known);
    weights made{dims, be_.allocate(dims.m, dims.n), known.sigma};
    auto frame = be64.frame();
    const auto l = be64.scratch(dims.n, dims.n);
    const auto w = be64.scratch(dims.m, dims.n);
    be64.copy(grams_.at(dims.n), l);
    be64.potrf(l);
    be64.copy(a, w);
    be64.trsm(side::right, op::none, l, w);
    be_.copy(w, made.w);
    weights_.push_back(std::move(made));
  }

  backend_f be_;
  std::map<index_t, matrix<double, cuda_space>> grams_;
  std::vector<weights> weights_;
};

template <class Method>
void whole_model(benchmark::State& state, backend_f be, const Method& method) {
  llama_7b model(be);
  measure_calls(state, be, [&] { model.compress(method); });
  const double excess = model.excess();
  state.counters["excess"] = excess;
  // The residual stage lowers the loss of its first stage; none is below the optimum of the rank.
  if (!(excess <= 1.1e-3)) state.SkipWithError("the loss is wrong");
}

/// A graph of what `queue` queues on the stream, and the seconds of one replay.
class replayed {
 public:
  template <class F>
  replayed(backend_f& be, F queue) : be_(be) {
    queue(); // compiles, loads and allocates what it needs once
    be.synchronize();
    const cudaStream_t stream = be.context()->stream();
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    queue();
    check(cudaStreamEndCapture(stream, &graph_));
    check(cudaGraphInstantiate(&ready_, graph_, 0));
    run();
  }
  replayed(const replayed&) = delete;
  replayed& operator=(const replayed&) = delete;
  ~replayed() {
    if (ready_ != nullptr) cudaGraphExecDestroy(ready_);
    if (graph_ != nullptr) cudaGraphDestroy(graph_);
  }

  double run() {
    constexpr int repeats = 20;
    return seconds_on(be_,
                      [&] {
                        for (int i = 0; i < repeats; ++i)
                          check(cudaGraphLaunch(ready_, be_.context()->stream()));
                      }) /
           repeats;
  }

 private:
  backend_f& be_;
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t ready_ = nullptr;
};

template <class U>
constexpr cudaDataType_t type_of = std::is_same_v<U, float>          ? CUDA_R_32F
                                   : std::is_same_v<U, ressvd::half> ? CUDA_R_16F
                                                                     : CUDA_R_16BF;

/// c ← aᵀ·b by cuBLAS, packed; a: k × m, b: k × n.
template <class U>
void transposed_product(cuda_context& context, index_t m, index_t n, index_t k, const U* a,
                        const U* b, float* c) {
  const float one = 1;
  const float zero = 0;
  check(cublasGemmEx_64(context.cublas(), CUBLAS_OP_T, CUBLAS_OP_N, m, n, k, &one, a, type_of<U>, k,
                        b, type_of<U>, k, &zero, c, CUDA_R_32F, m, CUBLAS_COMPUTE_32F,
                        CUBLAS_GEMM_DEFAULT));
}

/// Different matrices, so that no cache holds them.
inline constexpr int replayed_matrices = 8;

template <class U>
std::shared_ptr<U[]> random_values(backend_f& be, index_t count, std::uint64_t seed) {
  auto values = be.context()->allocate<U>(count);
  auto frame = be.frame();
  const auto x = be.scratch(count, 1);
  be.random_normal(x, seed);
  be.copy(x, cuda_col_major(values.get(), count, 1));
  return values;
}

/// Factors, vectors and sums in U, U and float.
template <class U>
void apply_rows(benchmark::State& state, index_t batch, int percent) {
  constexpr index_t n = layer_size;
  constexpr int matrices = replayed_matrices;
  const index_t rank = rank_at({n, n}, percent) / 8 * 8; // rows of 16 bytes
  backend_f be(cuda_context::owning());
  cuda_context& context = *be.context();
  const auto random = [&](index_t count, std::uint64_t seed) {
    return random_values<U>(be, count, seed);
  };
  const auto x = random(n * batch, 1);
  auto y = be.allocate(n, batch);
  std::vector<std::shared_ptr<U[]>> w;
  std::vector<std::shared_ptr<U[]>> u;
  std::vector<std::shared_ptr<U[]>> v;
  for (std::uint64_t i = 0; i < matrices; ++i) {
    w.push_back(random(n * n, 3 * i + 2));
    u.push_back(random(n * rank, 3 * i + 3));
    v.push_back(random(n * rank, 3 * i + 4));
  }
  const auto inputs = cuda_col_major<const U>(x.get(), n, batch);
  const auto pair = [&](std::size_t i) {
    apply(be, cuda_row_major<const U>(u[i].get(), n, rank),
          cuda_row_major<const U>(v[i].get(), rank, n), inputs, y.view());
  };
  const auto dense = [&](std::size_t i) {
    transposed_product<U>(context, n, batch, n, w[i].get(), x.get(), y.data());
  };
  try {
    replayed pairs(be, [&] {
      for (std::size_t i = 0; i < matrices; ++i)
        pair(i);
    });
    replayed denses(be, [&] {
      for (std::size_t i = 0; i < matrices; ++i)
        dense(i);
    });
    double seconds = 0;
    double dense_seconds = 0;
    for (auto _ : state) {
      dense_seconds += denses.run() / matrices;
      const double time = pairs.run() / matrices;
      state.SetIterationTime(time);
      seconds += time;
    }
    const double ideal = static_cast<double>(n) / static_cast<double>(2 * rank);
    state.counters["speedup"] = dense_seconds / seconds;
    state.counters["of_ideal"] = dense_seconds / seconds / ideal;
    state.counters["bytes_per_second"] = static_cast<double>(2 * n * rank) * sizeof(U) *
                                         static_cast<double>(state.iterations()) / seconds;
  } catch (const std::exception& error) {
    state.SkipWithError(error.what());
    return;
  }
  // The last pair by cuBLAS alone checks the result.
  pair(matrices - 1);
  auto held = be.allocate(rank, batch);
  auto expected = be.allocate(n, batch);
  transposed_product<U>(context, rank, batch, n, v.back().get(), x.get(), held.data());
  auto factor = be.allocate(rank, n);
  be.copy(cuda_col_major<const U>(u.back().get(), rank, n), factor.ref());
  be.gemm(op::transpose, op::none, 1.0f, factor, held, 0.0f, expected);
  const double energy = be.dot(expected, expected);
  be.add(-1.0f, y, expected);
  if (!(be.dot(expected, expected) <= 1e-8 * energy)) state.SkipWithError("y is wrong");
}

/// C and Z by rows.
template <class U>
struct pivoted_rows {
  std::shared_ptr<U[]> c;
  std::shared_ptr<U[]> z;
  index_list<cuda_space> order;
  index_t rank;
};

template <class U>
pivoted_rows<U> random_pivoted_rows(backend_f& be, index_t n, index_t rank, std::uint64_t seed) {
  std::vector<index_t> order(static_cast<std::size_t>(n));
  for (index_t i = 0; i < n; ++i)
    order[static_cast<std::size_t>(i)] = i * 1237 % n; // n is a power of two
  return {random_values<U>(be, (n - rank) * rank, seed), random_values<U>(be, n * rank, seed + 1),
          be.indices(order), rank};
}

template <class U>
void apply_pivoted_rows(benchmark::State& state, index_t batch, int percent) {
  constexpr index_t n = layer_size;
  constexpr int matrices = replayed_matrices;
  const index_t rank = rank_at({n, n}, percent) / 8 * 8;
  const index_t larger =
      at_ratio(percent / 100.0, {.multiple = 8, .form = factored_form::pivoted}).choose(n, n).rank;
  backend_f be(cuda_context::owning());
  const auto x = random_values<U>(be, n * batch, 1);
  const auto inputs = cuda_col_major<const U>(x.get(), n, batch);
  auto y = be.allocate(n, batch);
  std::vector<std::shared_ptr<U[]>> u;
  std::vector<std::shared_ptr<U[]>> v;
  std::vector<pivoted_rows<U>> same_rank;
  std::vector<pivoted_rows<U>> same_size;
  for (std::uint64_t i = 0; i < matrices; ++i) {
    u.push_back(random_values<U>(be, n * rank, 6 * i + 2));
    v.push_back(random_values<U>(be, n * rank, 6 * i + 3));
    same_rank.push_back(random_pivoted_rows<U>(be, n, rank, 6 * i + 4));
    same_size.push_back(random_pivoted_rows<U>(be, n, larger, 6 * i + 6));
  }
  const auto queue = [&](const pivoted_rows<U>& p) {
    apply(be, cuda_row_major<const U>(p.c.get(), n - p.rank, p.rank),
          cuda_row_major<const U>(p.z.get(), p.rank, n), p.order, inputs, y.view());
  };
  const auto replay = [&](auto body) {
    return std::make_unique<replayed>(be, [&] {
      for (std::size_t i = 0; i < matrices; ++i)
        body(i);
    });
  };
  try {
    const auto pairs = replay([&](std::size_t i) {
      apply(be, cuda_row_major<const U>(u[i].get(), n, rank),
            cuda_row_major<const U>(v[i].get(), rank, n), inputs, y.view());
    });
    const auto at_rank = replay([&](std::size_t i) { queue(same_rank[i]); });
    const auto at_size = replay([&](std::size_t i) { queue(same_size[i]); });
    double of_pair = 0;
    double of_rank = 0;
    double of_size = 0;
    for (auto _ : state) {
      of_pair += pairs->run() / matrices;
      of_size += at_size->run() / matrices;
      const double time = at_rank->run() / matrices;
      state.SetIterationTime(time);
      of_rank += time;
    }
    state.counters["at_rank"] = of_pair / of_rank;
    state.counters["at_size"] = of_pair / of_size;
  } catch (const std::exception& error) {
    state.SkipWithError(error.what());
    return;
  }
  // Z·x by cuBLAS alone checks the rows that Z makes.
  const pivoted_rows<U>& last = same_rank.back();
  queue(last);
  auto own = be.allocate(rank, batch);
  transposed_product<U>(*be.context(), rank, batch, n, last.z.get(), x.get(), own.data());
  std::vector<float> made(static_cast<std::size_t>(n * batch));
  std::vector<float> expected(static_cast<std::size_t>(rank * batch));
  be.download(y, {made.data(), n, batch, n});
  be.download(own, {expected.data(), rank, batch, rank});
  for (index_t b = 0; b < batch; ++b) {
    for (index_t i = 0; i < rank; ++i) {
      const double value = made[static_cast<std::size_t>(i * 1237 % n + b * n)];
      const double wanted = expected[static_cast<std::size_t>(i + b * rank)];
      if (!(std::abs(value - wanted) <= 1e-2)) return state.SkipWithError("y is wrong");
    }
  }
}

/// An iteration replays a graph of eight products 20 times, and the time of one product is what
/// counts: it would never come to the time that the benchmark library waits for.
inline constexpr int replays = 20;

void add_low_rank_rows() {
  const auto add_type = [&]<class U>(U, const std::string& type) {
    for (const index_t batch : {1, 4, 8}) {
      for (const int percent : {20, 40, 60, 80}) {
        benchmark::RegisterBenchmark(
            ("low_rank_rows/cuda/" + type + "/" + std::to_string(batch) + "/" +
             std::to_string(percent))
                .c_str(),
            [=](benchmark::State& state) { apply_rows<U>(state, batch, percent); })
            ->UseManualTime()
            ->Iterations(replays)
            ->Unit(benchmark::kMicrosecond);
        benchmark::RegisterBenchmark(
            ("pivoted_rows/cuda/" + type + "/" + std::to_string(batch) + "/" +
             std::to_string(percent))
                .c_str(),
            [=](benchmark::State& state) { apply_pivoted_rows<U>(state, batch, percent); })
            ->UseManualTime()
            ->Iterations(replays)
            ->Unit(benchmark::kMicrosecond);
      }
    }
  };
  add_type(ressvd::bfloat16{}, "bfloat16");
  add_type(ressvd::half{}, "half");
  add_type(float{}, "float");
}

void add_gram_sums() {
  for (const index_t features : {4096, 8192, 11008}) {
    const auto add_type = [&]<class U>(U, const std::string& type) {
      for (const index_t chunk : {2048, 8192}) {
        add("gram_sum/cuda/" + type + "_by_" + std::to_string(chunk) + "/" +
                std::to_string(features),
            [=](benchmark::State& state) {
              accumulate<U>(state, features, 16384, {.tokens_per_product = chunk});
            });
      }
    };
    add_type(ressvd::bfloat16{}, "bfloat16");
    add_type(ressvd::half{}, "half");
    add_type(float{}, "float");
  }
}

void add_all() {
  const backend_f be;
  const backend_f by_qr(cuda_context::owning({.svd = cuda_svd::qr_iteration}));
  for_each_matrix([&](spectrum kind, shape s) {
    const matrix_set set = synthetic(kind, s);
    add_factorings(be, set, kind == spectrum::layer);
    if (kind == spectrum::flat) return;
    const index_t rank = rank_at(s, 40);
    add(benchmark_name("gesvd", "cuda", set), [=](benchmark::State& state) {
      factor(state, by_qr, set, rank, {.algorithm = svd_algorithm::exact});
    });
    add(benchmark_name("gesvdj", "cuda", set),
        [=](benchmark::State& state) { gesvdj(state, be, set, rank); });
    if (s.m > s.n) return; // syevd wants the shorter side
    add(benchmark_name("syevd", "cuda", set),
        [=](benchmark::State& state) { syevd(state, be, set, rank); });
  });
  add_gram_sums();
  add("llama_7b/cuda/svd_llm/20",
      [=](benchmark::State& state) { whole_model(state, be, methods::svd_llm{}); });
  add("llama_7b/cuda/ressvd/20",
      [=](benchmark::State& state) { whole_model(state, be, methods::ressvd{}); });
  add_low_rank(be);
  add_low_rank_rows();
}

} // namespace

int main(int argc, char** argv) {
  if (cuda_device_count() == 0) {
    std::puts("bench_cuda: skipped, there is no CUDA device");
    return 0;
  }
  add_all();
  return bench::run(argc, argv);
}
