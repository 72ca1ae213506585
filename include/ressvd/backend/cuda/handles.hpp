// SPDX-License-Identifier: Apache-2.0
//
// cuBLAS and cuSOLVER handles, our own or the engine's. A lease is a handle for the length of one
// call: on our stream, with scalars on the host and full precision. The end of the lease puts back
// what a borrowed handle had.
#pragma once

#include <cstddef>

#include "ressvd/backend/cuda/error.hpp"

namespace ressvd {
inline namespace v0 {

/// What an engine lends. Everything must outlive the context and what was allocated with it.
struct cuda_handles {
  cudaStream_t stream = nullptr;          ///< all work goes here; null is the legacy default stream
  cublasHandle_t cublas = nullptr;        ///< null: a handle of our own is made
  void* cublas_workspace = nullptr;       ///< what the engine gave that handle by
  std::size_t cublas_workspace_bytes = 0; ///< cublasSetWorkspace; see below
  cusolverDnHandle_t cusolver = nullptr;  ///< null: a handle of our own is made when first needed
};
// cublasSetStream takes a handle's workspace away, and cuBLAS cannot be asked which it was. A
// handle that is on our stream already stays there and keeps its workspace; the engine must name
// the workspace of a handle on another stream, so that the lease can put it back.

namespace detail::cuda {

class cublas_lease {
 public:
  explicit cublas_lease(cublasHandle_t owned) : handle_(owned) {}
  // Delegates, so that the destructor puts back what was changed when a later call fails.
  cublas_lease(const cuda_handles& lent, cudaStream_t stream) : cublas_lease(lent.cublas) {
    check(cublasGetStream(handle_, &stream_));
    check(cublasGetPointerMode(handle_, &pointer_mode_));
    check(cublasGetMathMode(handle_, &math_mode_));
    lent_ = &lent;
    if (stream_ != stream) {
      check(cublasSetStream(handle_, stream));
      moved_ = true;
    }
    configure(handle_);
  }
  cublas_lease(const cublas_lease&) = delete;
  cublas_lease& operator=(const cublas_lease&) = delete;
  ~cublas_lease() {
    if (lent_ == nullptr) return;
    cublasSetMathMode(handle_, math_mode_);
    cublasSetPointerMode(handle_, pointer_mode_);
    if (!moved_) return;
    cublasSetStream(handle_, stream_);
    if (lent_->cublas_workspace != nullptr) {
      cublasSetWorkspace(handle_, lent_->cublas_workspace, lent_->cublas_workspace_bytes);
    }
  }

  operator cublasHandle_t() const { return handle_; }

  /// The modes we compute with. Products ask for TF32 one by one; the math mode never does.
  static void configure(cublasHandle_t handle) {
    check(cublasSetPointerMode(handle, CUBLAS_POINTER_MODE_HOST));
    check(cublasSetMathMode(handle, CUBLAS_DEFAULT_MATH));
  }

 private:
  cublasHandle_t handle_;
  const cuda_handles* lent_ = nullptr;
  cudaStream_t stream_ = nullptr;
  bool moved_ = false;
  cublasPointerMode_t pointer_mode_ = CUBLAS_POINTER_MODE_HOST;
  cublasMath_t math_mode_ = CUBLAS_DEFAULT_MATH;
};

class cusolver_lease {
 public:
  explicit cusolver_lease(cusolverDnHandle_t owned) : handle_(owned) {}
  cusolver_lease(cusolverDnHandle_t lent, cudaStream_t stream) : cusolver_lease(lent) {
    check(cusolverDnGetStream(handle_, &stream_));
    if (stream_ != stream) {
      check(cusolverDnSetStream(handle_, stream));
      moved_ = true;
    }
#if CUSOLVER_VER_MAJOR >= 12 // CUDA 13, whose math modes emulate with fewer bits
    check(cusolverDnGetMathMode(handle_, &math_mode_));
    if (math_mode_ != CUSOLVER_DEFAULT_MATH) {
      check(cusolverDnSetMathMode(handle_, CUSOLVER_DEFAULT_MATH));
      emulated_ = true;
    }
#endif
  }
  cusolver_lease(const cusolver_lease&) = delete;
  cusolver_lease& operator=(const cusolver_lease&) = delete;
  ~cusolver_lease() {
#if CUSOLVER_VER_MAJOR >= 12
    if (emulated_) cusolverDnSetMathMode(handle_, math_mode_);
#endif
    if (moved_) cusolverDnSetStream(handle_, stream_);
  }

  operator cusolverDnHandle_t() const {
    return handle_;
  }

 private:
  cusolverDnHandle_t handle_;
  cudaStream_t stream_ = nullptr;
  bool moved_ = false;
#if CUSOLVER_VER_MAJOR >= 12
  cusolverMathMode_t math_mode_ = CUSOLVER_DEFAULT_MATH;
  bool emulated_ = false;
#endif
};

} // namespace detail::cuda
} // namespace v0
} // namespace ressvd
