// SPDX-License-Identifier: Apache-2.0
#include <string>
#include <utility>

#include "ressvd/backend/eigen.hpp"
#include "ressvd/cuda.hpp"
#include "support/catch.hpp"

namespace {

namespace cuda = ressvd::detail::cuda;
using ressvd::cuda_space;
using ressvd::host_space;
using ressvd::matrix_view;

// Memory of one space cannot be passed where the other's belongs.
template <class B, class Space>
concept takes_view_of = requires(ressvd::gram_accumulator<B> gram, B be,
                                 matrix_view<const float, Space> view,
                                 ressvd::svd_options options) {
  gram.add(view);
  be.max_abs(view);
  ressvd::truncated_svd(be, view, ressvd::metric<typename B::space>::identity(),
                        ressvd::metric<typename B::space>::identity(), 1, options);
};

using on_cpu = ressvd::eigen_backend<float>;
using on_gpu = ressvd::cuda_backend<float>;
static_assert(takes_view_of<on_cpu, host_space> && takes_view_of<on_gpu, cuda_space>);
static_assert(!takes_view_of<on_cpu, cuda_space> && !takes_view_of<on_gpu, host_space>);
static_assert(
    !std::is_convertible_v<matrix_view<float, cuda_space>, matrix_view<const float, host_space>> &&
    !std::is_convertible_v<matrix_view<float, host_space>, matrix_view<const float, cuda_space>>);

// A context is shared, never copied.
static_assert(!std::is_copy_constructible_v<ressvd::cuda_context> &&
              !std::is_move_constructible_v<ressvd::cuda_context>);

} // namespace

TEST_CASE("device views have the layout they are named after", "[cuda]") {
  float* const memory = nullptr;
  const auto rows = ressvd::cuda_row_major(memory, 3, 5);
  CHECK(rows.order == ressvd::layout::row_major);
  CHECK(rows.ld == 5);
  const auto cols = ressvd::cuda_col_major(memory, 3, 5);
  CHECK(cols.order == ressvd::layout::col_major);
  CHECK(cols.ld == 3);
  CHECK(ressvd::cuda_row_major(memory, 3, 5, 8).ld == 8);
  CHECK(ressvd::cuda_col_major(memory, 3, 5, 7).ld == 7);
}

TEST_CASE("errors name the library, the status and the place", "[cuda]") {
  const auto here = contains_text("context.cpp");
  CHECK_THROWS_WITH(cuda::check(cudaErrorInvalidValue),
                    contains_text("CUDA returned cudaErrorInvalidValue: ") && here);
  CHECK_THROWS_WITH(cuda::check(CUBLAS_STATUS_NOT_SUPPORTED),
                    contains_text("cuBLAS returned CUBLAS_STATUS_NOT_SUPPORTED") && here);
  CHECK_THROWS_WITH(cuda::check(CUSOLVER_STATUS_INVALID_VALUE),
                    contains_text("cuSOLVER returned CUSOLVER_STATUS_INVALID_VALUE") && here);
  CHECK_THROWS_WITH(cuda::check(NVRTC_ERROR_INVALID_INPUT),
                    contains_text("NVRTC returned NVRTC_ERROR_INVALID_INPUT") && here);
  CHECK_THROWS_AS(cuda::check(CUBLAS_STATUS_INTERNAL_ERROR), ressvd::backend_error);
  CHECK_THROWS_AS(cuda::check(CUSOLVER_STATUS_NOT_INITIALIZED), ressvd::backend_error);
  CHECK_THROWS_AS(cuda::check(CUBLAS_STATUS_ALLOC_FAILED), ressvd::workspace_error);
  CHECK_THROWS_AS(cuda::check(CUSOLVER_STATUS_ALLOC_FAILED), ressvd::workspace_error);
  CHECK_NOTHROW(cuda::check(cudaSuccess));
}

TEST_CASE("every status of cuSOLVER has its name", "[cuda]") {
#define NAMED(status) std::pair<cusolverStatus_t, std::string>(status, #status)
  const std::pair<cusolverStatus_t, std::string> statuses[] = {
      NAMED(CUSOLVER_STATUS_SUCCESS),
      NAMED(CUSOLVER_STATUS_NOT_INITIALIZED),
      NAMED(CUSOLVER_STATUS_ALLOC_FAILED),
      NAMED(CUSOLVER_STATUS_INVALID_VALUE),
      NAMED(CUSOLVER_STATUS_ARCH_MISMATCH),
      NAMED(CUSOLVER_STATUS_MAPPING_ERROR),
      NAMED(CUSOLVER_STATUS_EXECUTION_FAILED),
      NAMED(CUSOLVER_STATUS_INTERNAL_ERROR),
      NAMED(CUSOLVER_STATUS_MATRIX_TYPE_NOT_SUPPORTED),
      NAMED(CUSOLVER_STATUS_NOT_SUPPORTED),
      NAMED(CUSOLVER_STATUS_INVALID_LICENSE),
      NAMED(CUSOLVER_STATUS_INVALID_WORKSPACE)};
#undef NAMED
  for (const auto& [status, name] : statuses)
    CHECK(cuda::status_name(status) == name);
  // A status of routines that the backend does not use.
  CHECK(std::string(cuda::status_name(CUSOLVER_STATUS_IRS_PARAMS_INVALID)) == "an unknown status");
}

TEST_CASE("without a device a context is refused by name", "[cuda]") {
  if (ressvd::cuda_device_count() > 0) return;
  CHECK_THROWS_WITH(ressvd::cuda_context::owning(), contains_text("CUDA returned cudaError"));
  CHECK_THROWS_AS(ressvd::cuda_backend<float>(), ressvd::backend_error);
}
