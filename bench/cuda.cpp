// SPDX-License-Identifier: Apache-2.0
//
// On the current CUDA device:
//   subspace, gram, exact   the library's factorisations of truncated_svd.hpp
//   gesvd, gesvdj, gesvdp   cuSOLVER's on the same matrix in float; gesvd refuses wide ones
//   syevd                   cuSOLVER's on a given AAᵀ in double: the route of Swift-SVD without
//                           its product
//   gram_sum                Gram accumulation; of_gemm: its rate (both triangles, 2n²t flops) over
//                           that of a product of bfloat16, 8192³, in the same process
//   llama_7b                the 224 matrices of a model of LLaMA-7B's shape at 20 %, with their 128
//                           whitenings
//   low_rank                low_rank.hpp
// Every benchmark checks its result once, outside the timed region, and fails if it is wrong.
// Without a device the program says that it was skipped.
#include "ressvd/cuda.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "low_rank.hpp"
#include "truncated_svd.hpp"

namespace {

using namespace bench;
namespace cuda = ressvd::detail::cuda;
using backend_f = cuda_backend<float>;
using backend_d = cuda_backend<double>;

/// The routines of cuSOLVER as they are: no choice, no fallback.
enum class routine { gesvd, gesvdj, gesvdp, syevd };

const char* name_of(routine r) {
  switch (r) {
    case routine::gesvd:
      return "gesvd";
    case routine::gesvdj:
      return "gesvdj";
    case routine::gesvdp:
      return "gesvdp";
    default:
      return "syevd";
  }
}

/// Economy SVD by Jacobi's method, at cuSOLVER's own tolerance: V, not its transpose. 32-bit sizes,
/// workspace in elements.
void gesvdj(cuda_context& context, block<float, cuda_space> a, block<float, cuda_space> s,
            block<float, cuda_space> u, block<float, cuda_space> v, int* info) {
  gesvdjInfo_t params = nullptr;
  cuda::check(cusolverDnCreateGesvdjInfo(&params));
  const int m = cuda::as_int(a.rows);
  const int n = cuda::as_int(a.cols);
  int elements = 0;
  cuda::check(cusolverDnSgesvdj_bufferSize(
      context.cusolver(), CUSOLVER_EIG_MODE_VECTOR, 1, m, n, a.data, cuda::as_int(a.ld), s.data,
      u.data, cuda::as_int(u.ld), v.data, cuda::as_int(v.ld), &elements, params));
  auto* const work = context.take<float>(elements);
  const cusolverStatus_t status = cusolverDnSgesvdj(
      context.cusolver(), CUSOLVER_EIG_MODE_VECTOR, 1, m, n, a.data, cuda::as_int(a.ld), s.data,
      u.data, cuda::as_int(u.ld), v.data, cuda::as_int(v.ld), work, elements, info, params);
  context.synchronize(); // before the parameters go
  cusolverDnDestroyGesvdjInfo(params);
  cuda::check(status);
}

void run_routine(cuda_context& context, routine r, block<float, cuda_space> a,
                 block<float, cuda_space> s, block<float, cuda_space> u, block<float, cuda_space> v,
                 int* info) {
  if (r == routine::gesvd) cuda::gesvd(context, a, s, u, info);
  if (r == routine::gesvdj) gesvdj(context, a, s, u, v, info);
  if (r == routine::gesvdp) cuda::gesvdp(context, a, s, u, v, info);
}

/// Runs `timed` after `prepare`, as often as asked; returns all seconds.
template <class P, class F>
double measure_routine(benchmark::State& state, backend_f& be, P prepare, F timed) {
  double seconds = 0;
  for (auto _ : state) {
    prepare();
    be.synchronize();
    const double time = seconds_on(be, timed);
    state.SetIterationTime(time);
    seconds += time;
  }
  return seconds;
}

void of_cusolver(benchmark::State& state, backend_f be, routine r, spectrum kind, shape dims) {
  const known_matrix& known = known_matrix_of(kind, dims.m, dims.n);
  const auto a = placed(be, known);
  const index_t k = (std::min)(dims.m, dims.n);
  const index_t rank = rank_at(dims, 40);
  cuda_context& context = *be.context();
  auto frame = be.frame();
  const auto work = be.scratch(dims.m, dims.n);
  const auto u = be.scratch(dims.m, k);
  const auto v = be.scratch(dims.n, k);
  const auto s = be.scratch(k, 1);
  int* const info = cuda::take_info(context);
  const double seconds = measure_routine(
      state, be, [&] { be.copy(a.view(), work); },
      [&] {
        auto inner = be.frame();
        run_routine(context, r, work, s, u, v, info);
      });
  int outcome = 0;
  context.read(info, &outcome, 1);
  if (outcome != 0) return state.SkipWithError("not converged");
  report(state, be, dims, seconds, excess_loss(be, known, a.ref(), u.left_cols(rank)),
         dense_tolerance);
}

void of_syevd(benchmark::State& state, backend_f be, spectrum kind, shape dims) {
  const known_matrix& known = known_matrix_of(kind, dims.m, dims.n);
  const auto a = placed(be, known);
  const index_t rank = rank_at(dims, 40);
  backend_d be64(be);
  cuda_context& context = *be.context();
  auto frame = be64.frame();
  const auto gram = be64.scratch(dims.m, dims.m);
  const auto work = be64.scratch(dims.m, dims.m);
  const auto values = be64.scratch(dims.m, 1);
  int* const info = cuda::take_info(context);
  {
    auto inner = be64.frame();
    const auto wide = be64.scratch(dims.m, dims.n);
    be64.copy(a.view(), wide);
    be64.gemm(op::none, op::transpose, 1.0, wide, wide, 0.0, gram);
  }
  const double seconds = measure_routine(
      state, be, [&] { be64.copy(cuda::as_input(gram).view(), work); },
      [&] {
        auto inner = be64.frame();
        cuda::syevd(context, work, values, info);
      });
  int outcome = 0;
  context.read(info, &outcome, 1);
  if (outcome != 0) return state.SkipWithError("not converged");
  const auto q = be.scratch(dims.m, rank); // eigenvalues ascend
  be.copy(cuda::as_input(work.col_range(dims.m - rank, rank)).view(), q);
  report(state, be, dims, seconds, excess_loss<backend_f>(be, known, a.ref(), q), 1e-5);
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
      be.copy(cuda::as_input(random), cuda_col_major(target.get(), n, n));
  }
  const float one = 1;
  const float zero = 0;
  std::vector<double> times;
  for (int i = 0; i < 6; ++i) {
    times.push_back(seconds_on(be, [&] {
      cuda::check(cublasGemmEx_64(context.cublas(), CUBLAS_OP_N, CUBLAS_OP_T, n, n, n, &one,
                                  a.get(), CUDA_R_16BF, n, b.get(), CUDA_R_16BF, n, &zero, c.get(),
                                  CUDA_R_16BF, n, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
    }));
  }
  std::sort(times.begin() + 1, times.end()); // the first one loads
  return rate = 2.0 * n * n * n / times[3];
}

template <class U>
void accumulate(benchmark::State& state, index_t features, index_t tokens,
                const cuda_options& options) {
  backend_f be(cuda_context::owning(options));
  backend_d be64(be);
  const auto stored = be.context()->allocate<U>(features * tokens);
  const auto batch = cuda_row_major<const U>(stored.get(), tokens, features);
  double trace = 0;
  {
    auto frame = be.frame();
    const auto x = be.scratch(features, tokens);
    be.random_normal(x, 1);
    be.copy(cuda::as_input(x), cuda_row_major(stored.get(), tokens, features).transposed());
    be.copy(batch.transposed(), x);
    trace = be.dot(x, x);
  }
  gram_accumulator sums(be, features, {.check = finite_check::deferred});
  sums.add(batch); // loads what is loaded once
  const double seconds = measure_routine(
      state, be, [] {}, [&] { sums.add(batch); });
  const auto adds = static_cast<double>(sums.tokens() / tokens);
  std::vector<double> diagonal(static_cast<std::size_t>(features));
  be64.diagonal(sums.gram(), diagonal);
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
  static constexpr int layers = 32;
  static constexpr double ratio = 0.2;

  explicit llama_7b(backend_f be) : be_(std::move(be)) {
    make_gram(4096);
    make_gram(11008);
    make_weights({4096, 4096});  // q, k, v, o
    make_weights({11008, 4096}); // gate, up
    make_weights({4096, 11008}); // down
  }

  /// Whitens 4 inputs and compresses 7 matrices for each layer.
  template <class Method>
  void compress(const Method& method) {
    for (int layer = 0; layer < layers; ++layer) {
      // q, k, v read one input; o, the pair of gate and up, and down read one each.
      for (const auto& [kind, readers] :
           {std::pair{0, 3}, std::pair{0, 1}, std::pair{1, 2}, std::pair{2, 1}}) {
        weights& read = weights_[static_cast<std::size_t>(kind)];
        calibration<backend_f> input(be_, std::as_const(grams_.at(read.dims.n)).ref());
        for (int i = 0; i < readers; ++i)
          read.report = input.compress(read.w, method, at_ratio(ratio)).report;
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
    be64.fill(gram.ref(), 0.0);
    be64.add_gram(cuda::as_input(x).view(), gram.ref());
    be64.shift_diagonal(gram.ref(), static_cast<double>(n));
    be64.mirror_lower(gram.ref());
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
    be64.copy(std::as_const(grams_.at(dims.n)).view(), l);
    be64.potrf(l);
    be64.copy(a.view(), w);
    be64.trsm(side::right, op::none, l, w);
    be64.copy(cuda::as_input(w), made.w.view());
    weights_.push_back(std::move(made));
  }

  backend_f be_;
  std::map<index_t, matrix<double, cuda_space>> grams_;
  std::vector<weights> weights_;
};

template <class Method>
void whole_model(benchmark::State& state, backend_f be, const Method& method) {
  llama_7b model(be);
  measure_routine(
      state, be, [] {}, [&] { model.compress(method); });
  const double excess = model.excess();
  state.counters["excess"] = excess;
  // The residual stage lowers the loss of its first stage; none is below the optimum of the rank.
  if (!(excess <= 1.1e-3)) state.SkipWithError("the loss is wrong");
}

void add_gram_sums() {
  for (const index_t features : {4096, 8192, 11008}) {
    const auto add_type = [&]<class U>(U, const char* type) {
      for (const index_t chunk : {2048, 8192}) {
        const cuda_options options{.tokens_per_product = chunk};
        add(std::string("gram_sum/cuda/") + type + "_" + std::to_string(chunk) + "/" +
                std::to_string(features),
            [=](benchmark::State& state) { accumulate<U>(state, features, 16384, options); });
      }
    };
    add_type(ressvd::bfloat16{}, "bfloat16");
    add_type(ressvd::half{}, "half");
    add_type(float{}, "float");
  }
}

void add_all() {
  const backend_f be;
  for_each_matrix([&](spectrum kind, shape s) {
    add_factorings(be, synthetic(kind, s), kind == spectrum::layer);
    if (kind == spectrum::flat) return;
    for (const routine r : {routine::gesvd, routine::gesvdj, routine::gesvdp}) {
      if (s.m < s.n && r == routine::gesvd) continue;
      add(std::string(name_of(r)) + "/cuda/layer/" + bench::name_of(s),
          [=](benchmark::State& state) { of_cusolver(state, be, r, kind, s); });
    }
    if (s.m > s.n) return; // syevd wants the shorter side
    add("syevd/cuda/layer/" + bench::name_of(s),
        [=](benchmark::State& state) { of_syevd(state, be, kind, s); });
  });
  add_gram_sums();
  add("llama_7b/cuda/svd_llm/20",
      [=](benchmark::State& state) { whole_model(state, be, methods::svd_llm{}); });
  add("llama_7b/cuda/ressvd/20",
      [=](benchmark::State& state) { whole_model(state, be, methods::ressvd{}); });
  add_low_rank(be);
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
