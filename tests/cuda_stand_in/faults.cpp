// SPDX-License-Identifier: Apache-2.0
//
// Cases that a device does not offer: routines that fail, handles that can be looked into.
#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "cuda_stand_in/confined.hpp"
#include "cuda_stand_in/stand_in.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/cuda_backends.hpp"
#include "support/dense.hpp"
#include "support/placed.hpp"

namespace {

using namespace support;
using ressvd::cuda_backend;
using ressvd::cuda_context;
using ressvd::layout;
using ressvd::op;
using ressvd::side;
using stand_in::control;
using stand_in::fault;

/// What makes the other routine take over.
constexpr fault failures[] = {fault::unconverged, fault::wrong_values, fault::refused,
                              fault::failed};

const char* name_of(fault f) {
  switch (f) {
    case fault::unconverged:
      return "did not converge";
    case fault::wrong_values:
      return "returned values of norm";
    case fault::refused:
      return "CUSOLVER_STATUS_INVALID_VALUE";
    default:
      return "CUSOLVER_STATUS_EXECUTION_FAILED";
  }
}

/// Singular values and left vectors of a (rounded to T) from here, against LAPACK's.
template <class B>
void check_svd(B& owner, B& be, const dense& a) {
  using T = typename B::scalar;
  const index_t k = std::min(a.rows(), a.cols());
  placed<T, B> c(owner, a, layout::col_major, 2);
  placed<T, B> u(owner, dense(a.rows(), k), layout::col_major, 1);
  std::vector<double> values(static_cast<std::size_t>(k));
  be.svd(c.block(), values, u.block());
  const auto expected = support::svd(a);
  const dense left = u.values(owner);
  const dense projected = transpose(left) * a;
  // Each routine errs by a small multiple of max(m, n)·eps·σ₁.
  const double rounding = static_cast<double>(std::max(a.rows(), a.cols())) * eps<B>;
  for (index_t i = 0; i < k; ++i) {
    const auto at = static_cast<std::size_t>(i);
    CHECK_THAT(values[at], WithinAbs(expected.s[at], 2 * rounding * expected.s[0]));
    CHECK_THAT(frobenius(part(projected, i, 0, 1, a.cols())),
               WithinAbs(expected.s[at], 2 * rounding * expected.s[0]));
  }
  CHECK(orthonormality_error(left) < 2 * rounding);
  CHECK(c.surroundings_unchanged(owner));
  CHECK(u.surroundings_unchanged(owner));
}

} // namespace

TEMPLATE_LIST_TEST_CASE("eigenvalues come from Jacobi's method when syevd fails", "[cuda]",
                        test_backends) {
  using T = typename TestType::scalar;
  constexpr index_t n = 90;
  auto owner = make_backend<TestType>();
  const dense x = random_normal(n, 2 * n, 1);
  const dense g = rounded<T>(x * transpose(x));
  for (const fault f : failures) {
    INFO(name_of(f));
    confined<TestType> here(owner, owner.eigh_bytes(n));
    placed<T, TestType> c(owner, g, layout::col_major, 3);
    std::vector<double> values(n);
    control.syevd = f;
    here.backend.eigh(c.block(), values);
    const auto& report = here.backend.context()->report;
    CHECK(report.syevd == 0);
    CHECK(report.syevj == 1);
    CHECK(report.fallbacks == 1);
    CHECK_THAT(report.last_fallback,
               contains_text("90 x 90 by syevj, after syevd: ") && contains_text(name_of(f)));
    CHECK(cudaGetLastError() == cudaSuccess);
    const dense q = c.values(owner);
    CHECK(distance(q * diagonal_matrix(values) * transpose(q), g) <
          4 * n * eps<TestType> * frobenius(g));
  }
}

TEMPLATE_LIST_TEST_CASE("singular values come from the other routine when the first one fails",
                        "[cuda]", test_backends) {
  using T = typename TestType::scalar;
  auto owner = make_backend<TestType>();
  for (const auto& [m, n] : {std::pair<index_t, index_t>{90, 90}, {120, 80}, {80, 120}, {40, 30}}) {
    const dense a = rounded<T>(random_normal(m, n, 5));
    const bool polar_first = std::min(m, n) > 64;
    for (const fault f : failures) {
      INFO(m << " x " << n << ", " << name_of(f));
      confined<TestType> here(owner, owner.svd_bytes(m, n));
      (polar_first ? control.gesvdp : control.gesvd) = f;
      check_svd(owner, here.backend, a);
      const auto& report = here.backend.context()->report;
      CHECK(report.gesvdp == (polar_first ? 0 : 1));
      CHECK(report.gesvd == (polar_first ? 1 : 0));
      CHECK(report.fallbacks == 1);
      CHECK_THAT(report.last_fallback, contains_text(polar_first ? "by gesvd, after gesvdp: "
                                                                 : "by gesvdp, after gesvd: ") &&
                                           contains_text(name_of(f)));
      CHECK(cudaGetLastError() == cudaSuccess);
    }
  }
}

TEST_CASE("a routine that refuses a size has no part in the scratch that is asked for", "[cuda]") {
  constexpr index_t n = 90;
  cuda_backend<double> owner;
  const dense x = random_normal(n, 2 * n, 4);
  const dense g = x * transpose(x);
  const std::size_t for_both = owner.eigh_bytes(n);
  control.syevd = fault::refused;
  const std::size_t for_one = owner.eigh_bytes(n);
  CHECK(for_one < for_both); // the stand-in's syevd asks for more than its syevj
  confined<cuda_backend<double>> here(owner, for_one);
  placed<double, cuda_backend<double>> c(owner, g, layout::col_major);
  std::vector<double> values(n);
  control.syevd = fault::refused;
  here.backend.eigh(c.block(), values);
  CHECK(here.backend.context()->report.syevj == 1);
}

TEST_CASE("an SVD that is perturbed by more than rounding is not taken", "[cuda]") {
  cuda_backend<double> be;
  control.gesvdp_perturbation = 1e-2;
  check_svd(be, be, random_normal(90, 80, 6));
  control.gesvdp_perturbation = 0;
  const auto& report = be.context()->report;
  CHECK(report.gesvd == 1);
  CHECK(report.fallbacks == 1);
  CHECK_THAT(
      report.last_fallback,
      contains_text("90 x 80 by gesvd, after gesvdp: it perturbed the singular values by 0.01"));
}

TEST_CASE("QR iteration of a wide matrix fails with the QR before it", "[cuda]") {
  cuda_backend<double> be(cuda_context::owning({.svd = ressvd::cuda_svd::qr_iteration}));
  control.geqrf = fault::failed;
  check_svd(be, be, random_normal(70, 90, 7));
  CHECK(be.context()->report.gesvdp == 1);
  CHECK_THAT(
      be.context()->report.last_fallback,
      contains_text("70 x 90 by gesvdp, after gesvd: cuSOLVER returned") && contains_text("geqrf"));
}

TEST_CASE("what no routine decomposes is an error that names them all", "[cuda]") {
  cuda_backend<double> be;
  placed<double, cuda_backend<double>> c(be, random_normal(80, 80, 8));
  placed<double, cuda_backend<double>> u(be, dense(80, 80));
  std::vector<double> values(80);
  control.gesvdp = fault::failed;
  control.gesvd = fault::unconverged;
  CHECK_THROWS_WITH(be.svd(c.block(), values, u.block()),
                    contains_text("could not decompose a 80 x 80 matrix. gesvdp: cuSOLVER returned "
                                  "CUSOLVER_STATUS_EXECUTION_FAILED") &&
                        contains_text("; gesvd: it did not converge (info 81)"));
  control.syevd = fault::unconverged;
  control.syevj = fault::failed;
  CHECK_THROWS_AS(be.eigh(c.block(), values), ressvd::backend_error);
  CHECK(be.context()->report.fallbacks == 0);
}

TEST_CASE("a lost device and missing memory are errors at once", "[cuda]") {
  cuda_backend<double> be;
  placed<double, cuda_backend<double>> c(be, random_normal(80, 80, 9));
  placed<double, cuda_backend<double>> u(be, dense(80, 80));
  std::vector<double> values(80);
  control.gesvdp = fault::no_memory;
  CHECK_THROWS_AS(be.svd(c.block(), values, u.block()), ressvd::workspace_error);
  control.syevd = fault::no_memory;
  CHECK_THROWS_WITH(be.eigh(c.block(), values),
                    contains_text("cuSOLVER could not allocate memory of its own: ") &&
                        contains_text(" of 17179869184 bytes are free"));
  control.syevd = fault::device_lost;
  CHECK_THROWS_WITH(be.eigh(c.block(), values),
                    contains_text("CUDA returned cudaErrorIllegalAddress"));
  CHECK(be.context()->report.fallbacks == 0);
  control.device_lost = false;
}

TEST_CASE("a perturbation within rounding is accepted and reported", "[cuda]") {
  cuda_backend<double> be;
  placed<double, cuda_backend<double>> c(be, 4.0 * identity(80));
  placed<double, cuda_backend<double>> u(be, dense(80, 80));
  std::vector<double> values(80);
  control.gesvdp_perturbation = 1e-15;
  be.svd(c.block(), values, u.block());
  control.gesvdp_perturbation = 0;
  CHECK(be.context()->report.gesvdp == 1);
  CHECK_THAT(be.context()->report.perturbation, WithinRel(0.25e-15, 1e-12));
}

TEST_CASE("the engine's cuBLAS workspace is put back", "[cuda]") {
  cublasHandle_t handle = nullptr;
  cudaStream_t stream = nullptr;
  cublasCreate(&handle);
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  int workspace = 0;
  const auto multiply = [](cuda_backend<float> be) {
    auto a = be.allocate(4, 4);
    auto b = be.allocate(4, 4);
    be.fill(a, 1);
    be.gemm(op::none, op::none, 1, a, a, 0, b);
  };
  cublasSetWorkspace(handle, &workspace, 4);
  multiply(cuda_backend<float>(cuda_context::borrowing({.stream = stream,
                                                        .cublas = handle,
                                                        .cublas_workspace = &workspace,
                                                        .cublas_workspace_bytes = 4})));
  CHECK(stand_in::workspace_of(handle) == &workspace);

  cublasSetStream(handle, stream);
  cublasSetWorkspace(handle, &workspace, 4);
  multiply(cuda_backend<float>(cuda_context::borrowing({.stream = stream, .cublas = handle})));
  CHECK(stand_in::workspace_of(handle) == &workspace);
  cublasDestroy(handle);
  cudaStreamDestroy(stream);
}

TEMPLATE_LIST_TEST_CASE("only members that return numbers wait", "[cuda]", test_backends) {
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  auto a = be.allocate(10, 10);
  auto b = be.allocate(10, 10);
  auto l = be.allocate(10, 10);
  const auto d = std::as_const(a).ref().col_range(0, 1);
  const long before = control.waits;
  be.fill(a, T{2});
  be.scale(T{2}, a);
  be.fill(l, T{0});
  be.shift_diagonal(l, T{1});
  be.gemm(op::none, op::transpose, T{1}, a, a, T{0}, b);
  be.trmm(side::left, op::none, l, a, b);
  be.trsm(side::right, op::transpose, l, b);
  be.mirror_lower(b);
  be.random_normal(b, 3);
  be.scale_rows(d, b);
  be.scale_cols(b, d);
  be.add(T{1}, a, b);
  be.copy(std::as_const(a).view().transposed(), b);
  be.add_gram(std::as_const(a).view(), b);
  be.add_product(std::as_const(a).view(), std::as_const(l).view(), b);
  be.add_row_abs(std::as_const(a).view(), b.ref().col_range(0, 1));
  CHECK(control.waits == before);
  CHECK(be.max_abs(std::as_const(a).view()) == 4);
  CHECK(control.waits == before + 1);
}

TEST_CASE("all memory is given back", "[cuda]") {
  const std::size_t before = stand_in::bytes_in_use();
  {
    cuda_backend<float> be;
    auto a = be.allocate(100, 100);
    auto frame = be.frame();
    be.scratch(1000, 10);
    be.scratch(1000, 1000);
    be.fill(a, 1);
    CHECK(be.context()->bytes_in_use() == stand_in::bytes_in_use() - before);
  }
  CHECK(stand_in::bytes_in_use() == before);
}

TEST_CASE("a context is used on its own device only", "[cuda]") {
  cuda_backend<float> be;
  auto a = be.allocate(3, 3);
  cudaSetDevice(1);
  CHECK_THROWS_WITH(be.fill(a, 1), contains_text("on device 0 is used while device 1 is current"));
  cudaSetDevice(0);
}

TEST_CASE("kernels for a device that NVRTC does not know are compiled by the driver", "[cuda]") {
  control.compute_capability = 100; // between the known 90 and 120
  {
    cuda_backend<float> be;
    auto a = be.allocate(5, 4);
    be.fill(a, 3);
    CHECK(be.max_abs(std::as_const(a).view()) == 3);
  }
  control.compute_capability = 70; // below all
  {
    cuda_backend<float> be;
    auto a = be.allocate(5, 4);
    CHECK_THROWS_WITH(be.fill(a, 3), contains_text("this device's capability 7.0"));
  }
  control.compute_capability = 90;
}

TEST_CASE("automatic asks the device how fast its double precision is", "[cuda]") {
  using ressvd::svd_algorithm;
  using list = std::vector<svd_algorithm>;
  cuda_backend<float> be;
  const auto chosen = [&](int ratio, index_t rows, index_t cols, index_t rank) {
    control.double_ratio = ratio;
    return ressvd::choose_algorithms(be, svd_algorithm::automatic, rows, cols, rank);
  };
  const list gram{svd_algorithm::gram};
  const list subspace{svd_algorithm::subspace, svd_algorithm::gram};
  const list projector{svd_algorithm::projector, svd_algorithm::gram};
  for (const int fast : {2, 3, 8}) {
    CHECK(chosen(fast, 4096, 4096, 100) == projector);
    CHECK(chosen(fast, 11008, 4096, 2457) == projector);
    CHECK(chosen(fast, 11008, 4096, 2458) == gram);
    CHECK(chosen(fast, 2048, 2048, 100) == projector);
    CHECK(chosen(fast, 2047, 4096, 100) == gram);
    control.compute_capability = 70; // no products in TF32
    CHECK(chosen(fast, 4096, 4096, 100) == gram);
    control.compute_capability = 90;
  }
  for (const int slow : {24, 32, 64}) {
    CHECK(chosen(slow, 4096, 4096, 100) == subspace);
    CHECK(chosen(slow, 4096, 4096, 2048) == subspace);
    CHECK(chosen(slow, 4096, 4096, 2049) == gram);
    CHECK(chosen(slow, 11008, 4096, 1024) == subspace);
    CHECK(chosen(slow, 11008, 4096, 1228) == gram);
  }
  control.double_ratio = 32;
  CHECK(be.double_speed() == 1.0 / 32);
  CHECK(ressvd::choose_algorithms(cuda_backend<double>(be), svd_algorithm::automatic, 4096, 4096,
                                  100) == list{svd_algorithm::exact});
  control.double_ratio = 2;
}

TEST_CASE("only what asks for more than a Gram product's tokens is split", "[cuda]") {
  // Beside 1 a term of 2^-26 is lost in a float sum: inside a chunk, and not between chunks.
  cuda_backend<double> be;
  const auto sum_of = [&](auto stored, index_t tokens, index_t chunk) {
    using U = decltype(stored);
    cuda_backend<double> some(
        cuda_context::borrowing({.stream = be.context()->stream()}, {.tokens_per_product = chunk}));
    dense x(1, tokens);
    for (index_t t = 0; t < tokens; ++t)
      x(0, t) = t == 0 ? 1 : 0;
    x(0, tokens - 1) = 0x1p-13;
    placed<U, cuda_backend<double>> batch(some, x);
    auto sum = some.allocate(1, 1);
    some.fill(sum, 0);
    some.add_gram(batch.view(), sum.ref());
    return values_of(some, sum)(0, 0);
  };
  const double kept = 1 + 0x1p-26;
  CHECK(sum_of(ressvd::bfloat16{}, 8192, 0) == 1);
  CHECK(sum_of(ressvd::bfloat16{}, 8193, 0) == kept);
  CHECK(sum_of(ressvd::half{}, 8192, 0) == 1);
  CHECK(sum_of(ressvd::half{}, 8193, 0) == kept);
  CHECK(sum_of(float{}, 2048, 0) == 1);
  CHECK(sum_of(float{}, 2049, 0) == kept);
  CHECK(sum_of(ressvd::bfloat16{}, 100, 100) == 1);
  CHECK(sum_of(ressvd::bfloat16{}, 101, 100) == kept);
  CHECK_THROWS_WITH(cuda_context::owning({.tokens_per_product = -1}),
                    contains_text("tokens_per_product is -1"));
}

TEST_CASE("activations that a product in float would overflow on are summed in double", "[cuda]") {
  cuda_backend<float> be;
  constexpr double large = 0x1.8p57; // 8192 of its squares exceed 2^128
  placed<ressvd::bfloat16, cuda_backend<float>> batch(be, dense(1, 8192, large));
  ressvd::gram_accumulator gram(be, 1);
  gram.add(batch.view(), ressvd::token_order::features_by_tokens);
  CHECK_THAT(values_of(be, gram.gram())(0, 0), WithinRel(8192 * large * large, 1e-12));
}
