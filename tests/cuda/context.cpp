// SPDX-License-Identifier: Apache-2.0
//
// The context: borrowed handles in a hostile state, streams, threads, memory.
#include <atomic>
#include <chrono>
#include <cmath>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "ressvd/cuda.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/cuda_backends.hpp"
#include "support/dense.hpp"
#include "support/placed.hpp"

namespace {

using namespace support;
using ressvd::cuda_backend;
using ressvd::cuda_context;
using ressvd::op;
using ressvd::detail::cuda::check;

/// The engine's side: a stream, handles, device memory.
struct engine {
  engine() {
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    check(cublasCreate(&cublas));
    check(cusolverDnCreate(&cusolver));
  }
  ~engine() {
    cusolverDnDestroy(cusolver);
    cublasDestroy(cublas);
    cudaStreamDestroy(stream);
  }
  engine(const engine&) = delete;
  engine& operator=(const engine&) = delete;

  cudaStream_t stream = nullptr;
  cublasHandle_t cublas = nullptr;
  cusolverDnHandle_t cusolver = nullptr;
};

/// Holds a stream up until it is told to go on; gives up after ten seconds, so that a call that
/// waits for that stream fails its test instead of hanging it.
class roadblock {
 public:
  explicit roadblock(cudaStream_t stream) : stream_(stream) {
    check(cudaLaunchHostFunc(stream, &wait, this));
  }
  ~roadblock() {
    lift();
    cudaStreamSynchronize(stream_);
  }
  roadblock(const roadblock&) = delete;
  roadblock& operator=(const roadblock&) = delete;

  bool stands() const { return !gave_up_; }
  void lift() { lifted_ = true; }

 private:
  static void wait(void* self) {
    auto& block = *static_cast<roadblock*>(self);
    for (int i = 0; i < 10000 && !block.lifted_; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    if (!block.lifted_) block.gave_up_ = true;
  }

  cudaStream_t stream_;
  std::atomic<bool> lifted_ = false;
  std::atomic<bool> gave_up_ = false;
};

template <class B>
dense product(B& be, const dense& a, const dense& b) {
  using T = typename B::scalar;
  placed<T, B> pa(be, a);
  placed<T, B> pb(be, b);
  placed<T, B> pc(be, dense(a.rows(), b.cols()));
  be.gemm(op::none, op::none, T{1}, std::as_const(pa).block(), std::as_const(pb).block(), T{0},
          pc.block());
  return pc.values(be);
}

template <class B>
std::vector<double> eigenvalues(B& be, const dense& a) {
  placed<typename B::scalar, B> c(be, a);
  std::vector<double> values(static_cast<std::size_t>(a.rows()));
  be.eigh(c.block(), values);
  return values;
}

dense random_gram(index_t n, std::uint64_t seed) {
  const dense x = random_normal(n, 2 * n, seed);
  return x * transpose(x);
}

/// Elements with more significant bits than TF32 has; a product in TF32 shows it.
constexpr index_t depth = 64;
double float_bound(const dense& a, const dense& b) {
  return static_cast<double>(depth) * 0x1p-23 * frobenius(a) * frobenius(b);
}

} // namespace

TEST_CASE("a borrowed handle computes exactly and comes back as it was", "[cuda]") {
  engine e;
  cudaStream_t elsewhere = nullptr;
  check(cudaStreamCreateWithFlags(&elsewhere, cudaStreamNonBlocking));
  check(cublasSetStream(e.cublas, elsewhere));
  check(cusolverDnSetStream(e.cusolver, elsewhere));
  check(cublasSetPointerMode(e.cublas, CUBLAS_POINTER_MODE_DEVICE));
  check(cublasSetMathMode(e.cublas, CUBLAS_TF32_TENSOR_OP_MATH));
#if CUSOLVER_VER_MAJOR >= 12
  check(cusolverDnSetMathMode(e.cusolver, CUSOLVER_FP32_EMULATED_BF16X9_MATH));
#endif
  const dense a = rounded<float>(random_normal(96, depth, 1));
  const dense b = rounded<float>(random_normal(depth, 80, 2));
  const dense g = random_gram(70, 3);
  {
    cuda_backend<float> be(
        cuda_context::borrowing({.stream = e.stream, .cublas = e.cublas, .cusolver = e.cusolver}));
    // Componentwise bounds are the suites' business; here it is float against TF32, 2^13 coarser.
    CHECK(distance(product(be, a, b), a * b) < float_bound(a, b));

    cuda_backend<double> wide(be);
    const auto values = eigenvalues(wide, g);
    const auto expected = support::eigh(g).values;
    for (std::size_t i = 0; i < values.size(); ++i)
      CHECK_THAT(values[i], WithinAbs(expected[i], 70 * 0x1p-52 * expected.back()));
  }
  cudaStream_t stream = nullptr;
  cublasPointerMode_t pointer_mode{};
  cublasMath_t math_mode{};
  check(cublasGetStream(e.cublas, &stream));
  CHECK(stream == elsewhere);
  check(cusolverDnGetStream(e.cusolver, &stream));
  CHECK(stream == elsewhere);
  check(cublasGetPointerMode(e.cublas, &pointer_mode));
  CHECK(pointer_mode == CUBLAS_POINTER_MODE_DEVICE);
  check(cublasGetMathMode(e.cublas, &math_mode));
  CHECK(math_mode == CUBLAS_TF32_TENSOR_OP_MATH);
#if CUSOLVER_VER_MAJOR >= 12
  cusolverMathMode_t solver_mode{};
  check(cusolverDnGetMathMode(e.cusolver, &solver_mode));
  CHECK(solver_mode == CUSOLVER_FP32_EMULATED_BF16X9_MATH);
#endif
  check(cudaStreamDestroy(elsewhere));
}

TEST_CASE("a handle on the context's stream is never moved off it", "[cuda]") {
  // cublasSetStream would take the engine's workspace away, and nothing could give it back: the
  // engine did not say which it is.
  engine e;
  check(cublasSetStream(e.cublas, e.stream));
  cuda_backend<float> be(cuda_context::borrowing({.stream = e.stream, .cublas = e.cublas}));
  const auto memory = be.context()->allocate<float>(1 << 20);
  check(cublasSetWorkspace(e.cublas, memory.get(), std::size_t{4} << 20));
  const dense a = rounded<float>(random_normal(64, depth, 4));
  CHECK(distance(product(be, a, transpose(a)), a * transpose(a)) < float_bound(a, a));
  cudaStream_t stream = nullptr;
  check(cublasGetStream(e.cublas, &stream));
  CHECK(stream == e.stream);
}

TEST_CASE("TF32 is used only when asked for", "[cuda]") {
  const dense a = rounded<float>(random_normal(96, depth, 5));
  const dense b = rounded<float>(random_normal(depth, 80, 6));
  cuda_backend<float> exact;
  CHECK(distance(product(exact, a, b), a * b) < float_bound(a, b));
  // 11 bits for each factor; a device without TF32 computes in float.
  cuda_backend<float> fast(cuda_context::owning({.tf32 = true}));
  const double error = distance(product(fast, a, b), a * b);
  CHECK(error < 2 * 0x1p-11 * frobenius(absolute(a) * absolute(b)));
}

TEST_CASE("the default streams serve", "[cuda]") {
  const dense a = rounded<float>(random_normal(40, depth, 7));
  for (const cudaStream_t stream : {cudaStream_t{nullptr}, cudaStreamLegacy, cudaStreamPerThread}) {
    cuda_backend<float> be(cuda_context::borrowing({.stream = stream}));
    CHECK(distance(product(be, a, transpose(a)), a * transpose(a)) < float_bound(a, a));
    std::thread([&] {
      CHECK(be.max_abs(placed<float, cuda_backend<float>>(be, a).view()) > 0);
    }).join();
  }
}

TEMPLATE_LIST_TEST_CASE("a busy foreign stream neither delays nor disturbs", "[cuda]",
                        test_backends) {
  using T = typename TestType::scalar;
  engine other;
  auto be = make_backend<TestType>();
  const dense a = rounded<T>(random_normal(50, depth, 8));
  const dense g = random_gram(40, 9);
  const dense first = product(be, a, transpose(a)); // loads what is loaded once
  const auto values = eigenvalues(be, g);

  roadblock busy(other.stream);
  CHECK(product(be, a, transpose(a)) == first);
  CHECK(eigenvalues(be, g) == values);
  CHECK(busy.stands());
}

TEMPLATE_LIST_TEST_CASE("Gram accumulation never waits for the device", "[cuda]", test_backends) {
  auto be = make_backend<TestType>();
  const dense x = activations(48, 300, 10);
  placed<ressvd::bfloat16, TestType> batch(be, x);
  ressvd::gram_accumulator gram(be, 48,
                                {.channel_means = true, .check = ressvd::finite_check::deferred});
  gram.add(batch.view(), ressvd::token_order::features_by_tokens); // loads what is loaded once
  be.synchronize();
  {
    roadblock ahead(be.context()->stream());
    gram.add(batch.view(), ressvd::token_order::features_by_tokens);
    CHECK(ahead.stands());
  }
  const dense xs = rounded<ressvd::bfloat16>(x);
  const dense expected = 2.0 * (xs * transpose(xs));
  // Products of 16-bit numbers are exact in float; 300 of them are added, then two batches.
  const dense bound = 302 * 0x1p-23 * (2.0 * (absolute(xs) * transpose(absolute(xs))));
  CHECK(error_in_bounds(values_of(be, gram.gram()), expected, bound) <= 1);
}

TEST_CASE("contexts in two threads do not disturb each other", "[cuda]") {
  const auto work = [](std::uint64_t seed) {
    cuda_backend<float> be;
    const dense a = rounded<float>(random_normal(60, depth, seed));
    const dense g = random_gram(50, seed);
    std::pair<dense, std::vector<double>> result;
    for (int round = 0; round < 3; ++round)
      result = {product(be, a, transpose(a)), eigenvalues(be, g)};
    return result;
  };
  const auto alone = std::pair(work(11), work(12));
  auto together = std::pair(alone.second, alone.first);
  std::thread one([&] { together.first = work(11); });
  std::thread two([&] { together.second = work(12); });
  one.join();
  two.join();
  CHECK(together.first == alone.first);
  CHECK(together.second == alone.second);
}

TEST_CASE("running out of memory is an error with the sizes", "[cuda]") {
  cuda_backend<double> be(cuda_context::owning({.memory_limit = 1 << 20}));
  const auto held = be.allocate(256, 256); // half of the limit
  CHECK_THROWS_WITH(be.allocate(512, 256),
                    contains_text("could not allocate 1048576 bytes of device memory") &&
                        contains_text("524288 of the limit of 1048576 bytes are in use"));
  CHECK_THROWS_AS(be.scratch(512, 256), ressvd::workspace_error);
  CHECK(be.context()->bytes_in_use() == 524288);
}

TEST_CASE("more memory than the device has is refused with the sizes", "[cuda]") {
  cuda_backend<double> be;
  const index_t side = index_t{1} << 23; // 2^49 bytes
  CHECK_THROWS_WITH(
      be.allocate(side, side),
      contains_text("could not allocate 562949953421312 bytes") && contains_text("bytes are free"));
  CHECK(cudaGetLastError() == cudaSuccess);
  const dense a = rounded<double>(random_normal(8, 8, 13));
  CHECK(distance(product(be, a, identity(8)), a) == 0);
}

TEMPLATE_LIST_TEST_CASE("a workspace of the size asked for is enough", "[cuda]", test_backends) {
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  const auto run_in = [&](std::size_t bytes, auto f) {
    const auto buffer =
        be.context()->template allocate<double>(static_cast<index_t>(bytes / sizeof(double) + 1));
    TestType fixed(cuda_context::borrowing({.stream = be.context()->stream()},
                                           {.workspace = buffer.get(), .workspace_bytes = bytes}));
    f(fixed);
    CHECK(fixed.context()->scratch.peak() <= bytes);
    CHECK(fixed.context()->scratch.peak() > 0);
  };
  const dense g = random_gram(100, 14);
  std::vector<double> values(100);

  run_in(be.potrf_bytes(100), [&](TestType& fixed) {
    placed<T, TestType> c(be, g);
    CHECK(fixed.potrf(c.block()) == 0);
  });
  run_in(be.eigh_bytes(100), [&](TestType& fixed) {
    placed<T, TestType> c(be, g);
    fixed.eigh(c.block(), values);
  });
  for (const auto& [m, n] :
       {std::pair<index_t, index_t>{100, 100}, {160, 70}, {70, 160}, {20, 50}}) {
    const index_t k = std::min(m, n);
    for (const auto how : {ressvd::cuda_svd::automatic, ressvd::cuda_svd::qr_iteration}) {
      INFO(m << " x " << n);
      const std::size_t bytes = be.svd_bytes(m, n);
      const auto buffer =
          be.context()->template allocate<double>(static_cast<index_t>(bytes / sizeof(double) + 1));
      TestType fixed(cuda_context::borrowing(
          {.stream = be.context()->stream()},
          {.workspace = buffer.get(), .workspace_bytes = bytes, .svd = how}));
      placed<T, TestType> c(be, random_normal(m, n, 15));
      placed<T, TestType> u(be, dense(m, k));
      fixed.svd(c.block(), values, u.block());
      CHECK(fixed.context()->scratch.peak() <= bytes);
    }
  }
  for (const auto& [m, n] : {std::pair<index_t, index_t>{100, 100}, {160, 70}}) {
    run_in(be.thin_qr_bytes(m, n), [&, rows = m, cols = n](TestType& fixed) {
      placed<T, TestType> c(be, random_normal(rows, cols, 16));
      placed<T, TestType> r(be, dense(cols, cols));
      fixed.thin_qr(c.block(), r.block());
    });
    run_in(be.triangularize_bytes(n, m), [&, rows = n, cols = m](TestType& fixed) {
      placed<T, TestType> c(be, random_normal(rows, cols, 17));
      placed<T, TestType> r(be, dense(cols, cols));
      fixed.triangularize(c.block(), r.block());
    });
  }
}

TEST_CASE("a workspace that is too small says what is needed", "[cuda]") {
  cuda_backend<double> be;
  const auto buffer = be.context()->allocate<double>(512);
  cuda_backend<double> fixed(cuda_context::borrowing(
      {.stream = be.context()->stream()}, {.workspace = buffer.get(), .workspace_bytes = 4096}));
  placed<double, cuda_backend<double>> c(be, random_gram(100, 18));
  std::vector<double> values(100);
  CHECK_THROWS_WITH(fixed.eigh(c.block(), values),
                    contains_text("the workspace of 4096 bytes is too small"));
}

TEMPLATE_LIST_TEST_CASE("both ways to an SVD agree and are reported", "[cuda]", test_backends) {
  using T = typename TestType::scalar;
  const dense a = with_spectrum(120, 90, geometric_spectrum(90, 1e3), 19);
  const auto run = [&](ressvd::cuda_svd how, ressvd::cuda_report& report) {
    TestType be(cuda_context::owning({.svd = how}));
    placed<T, TestType> c(be, a);
    placed<T, TestType> u(be, dense(120, 90));
    std::vector<double> values(90);
    be.svd(c.block(), values, u.block());
    report = be.context()->report;
    CHECK(orthonormality_error(u.values(be)) < 120 * eps<TestType>);
    return values;
  };
  ressvd::cuda_report polar, qr;
  const auto by_polar = run(ressvd::cuda_svd::automatic, polar);
  const auto by_qr = run(ressvd::cuda_svd::qr_iteration, qr);
  // Weyl: each route perturbs A by a small multiple of max(m, n)·eps·σ₁.
  for (std::size_t i = 0; i < by_qr.size(); ++i)
    CHECK_THAT(by_polar[i], WithinAbs(by_qr[i], 2 * 120 * eps<TestType> * by_qr[0]));
  CHECK(polar.gesvdp + polar.gesvd == 1);
  CHECK(polar.fallbacks == polar.gesvd);
  CHECK(polar.perturbation <= 120 * eps<TestType>);
  CHECK(qr.gesvd == 1);
  CHECK(qr.fallbacks == 0);
}

TEST_CASE("a matrix outlives the context it was made on", "[cuda]") {
  ressvd::matrix<float, ressvd::cuda_space> kept;
  {
    cuda_backend<float> be;
    kept = be.allocate(16, 16);
    be.fill(kept, 3.0f);
    be.synchronize();
  }
  cuda_backend<float> other;
  CHECK(other.max_abs(std::as_const(kept).view()) == 3);
}
