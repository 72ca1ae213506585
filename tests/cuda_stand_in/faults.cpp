// SPDX-License-Identifier: Apache-2.0
//
// What cannot be brought about on a device: routines that fail, handles that can be looked into.
#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

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

/// A backend that takes its scratch from a buffer of so many bytes.
template <class B>
struct confined {
  confined(B& owner, std::size_t bytes)
      : buffer(owner.context()->template allocate<char>(static_cast<index_t>(bytes))),
        backend(cuda_context::borrowing({.stream = owner.context()->stream()},
                                        {.workspace = buffer.get(), .workspace_bytes = bytes})) {}

  std::shared_ptr<char[]> buffer;
  B backend;
};

} // namespace

TEMPLATE_LIST_TEST_CASE("eigenvalues come from Jacobi's method when syevd fails", "[cuda]",
                        test_backends) {
  using T = typename TestType::scalar;
  constexpr index_t n = 90;
  auto owner = make_backend<TestType>();
  const dense x = random_normal(n, 2 * n, 1);
  const dense g = rounded<T>(x * transpose(x));
  confined<TestType> here(owner, owner.eigh_bytes(n));
  placed<T, TestType> c(owner, g, layout::col_major, 3);
  std::vector<double> values(n);

  control.failing_syevd = 1;
  here.backend.eigh(c.block(), values);
  const auto& report = here.backend.context()->report;
  CHECK(report.syevd == 0);
  CHECK(report.syevj == 1);
  const dense q = c.values(owner);
  CHECK(distance(q * diagonal_matrix(values) * transpose(q), g) <
        4 * n * eps<TestType> * frobenius(g));

  control.failing_syevd = 1;
  control.failing_syevj = 1;
  placed<T, TestType> again(owner, g);
  CHECK_THROWS_WITH(here.backend.eigh(again.block(), values),
                    contains_text("syevd and syevj did not converge on a 90 x 90 matrix"));
}

TEMPLATE_LIST_TEST_CASE("singular values come from QR iteration when gesvdp is not good enough",
                        "[cuda]", test_backends) {
  using T = typename TestType::scalar;
  auto owner = make_backend<TestType>();
  for (const auto& [m, n] : {std::pair<index_t, index_t>{90, 90}, {120, 80}, {80, 120}}) {
    for (const bool perturbed : {false, true}) {
      INFO(m << " x " << n << ", perturbed " << perturbed);
      const index_t k = std::min(m, n);
      const dense a = rounded<T>(random_normal(m, n, 5));
      confined<TestType> here(owner, owner.svd_bytes(m, n));
      placed<T, TestType> c(owner, a, layout::col_major, 2);
      placed<T, TestType> u(owner, dense(m, k), layout::col_major, 1);
      std::vector<double> values(static_cast<std::size_t>(k));

      control.failing_gesvdp = perturbed ? 0 : 1;
      control.gesvdp_perturbation = perturbed ? 1e-2 : 0;
      here.backend.svd(c.block(), values, u.block());
      control.gesvdp_perturbation = 0;

      const auto& report = here.backend.context()->report;
      CHECK(report.gesvdp == 0);
      CHECK(report.gesvd == 1);
      CHECK(report.svd_fallbacks == 1);
      const auto expected = support::svd(a);
      const dense left = u.values(owner);
      const dense projected = transpose(left) * a;
      const double tolerance = 2 * 120 * eps<TestType> * expected.s[0];
      for (index_t i = 0; i < k; ++i) {
        const auto at = static_cast<std::size_t>(i);
        CHECK_THAT(values[at], WithinAbs(expected.s[at], tolerance));
        CHECK_THAT(frobenius(part(projected, i, 0, 1, n)), WithinAbs(expected.s[at], tolerance));
      }
      CHECK(orthonormality_error(left) < 120 * eps<TestType>);
    }
  }
}

TEST_CASE("an SVD that nothing computes is an error", "[cuda]") {
  cuda_backend<double> be;
  placed<double, cuda_backend<double>> c(be, random_normal(80, 80, 6));
  placed<double, cuda_backend<double>> u(be, dense(80, 80));
  std::vector<double> values(80);
  control.failing_gesvdp = 1;
  control.failing_gesvd = 1;
  CHECK_THROWS_WITH(be.svd(c.block(), values, u.block()),
                    contains_text("gesvd did not converge on a 80 x 80 matrix"));
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
