// SPDX-License-Identifier: Apache-2.0
//
// The context behind CUDA backends: a stream, library handles, scratch memory, kernels. Its factory
// decides whether it owns them or borrows the engine's. All work goes to the one stream. No
// globals but the process's compiled kernels; one context serves one thread at a time.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "ressvd/backend/cuda/handles.hpp"
#include "ressvd/backend/cuda/kernels.hpp"
#include "ressvd/backend/cuda/memory.hpp"
#include "ressvd/core/workspace.hpp"

namespace ressvd {
inline namespace v0 {

/// Which routine computes an SVD first. automatic: the polar decomposition (Xgesvdp), but QR
/// iteration (Xgesvd) for small matrices. The other one runs where the first fails.
enum class cuda_svd : std::uint8_t { automatic, qr_iteration };

struct cuda_options {
  void* workspace = nullptr;       ///< device buffer to take all scratch from; null: allocate it
  std::size_t workspace_bytes = 0; ///< size of that buffer
  std::size_t memory_limit = 0;    ///< most device bytes to allocate at once; 0: no limit
  bool tf32 = false; ///< products of float may round their factors to TF32 (11 significant bits)
  index_t tokens_per_product = 0; ///< terms that a Gram product sums in float before it is added to
                                  ///< sums in double: more is faster, less more exact; 0: 8192 of
                                  ///< 16-bit activations, 2048 of others
  cuda_svd svd = cuda_svd::automatic;
  /// Folder to keep compiled kernels in, made when it is missing; empty: they are kept in memory
  /// alone. Whoever may write there decides what the device runs.
  std::string kernel_cache = {};
};

/// The routines that decompositions ran, counted since the context was made.
struct cuda_report {
  index_t syevd = 0;         ///< eigenproblems solved by Xsyevd
  index_t syevj = 0;         ///< eigenproblems solved by Jacobi's method
  index_t gesvdp = 0;        ///< SVDs by Xgesvdp
  index_t gesvd = 0;         ///< SVDs by Xgesvd
  index_t fallbacks = 0;     ///< those among all these that another routine had failed on
  std::string last_fallback; ///< which matrix, which routine served, and how the other one failed
  double perturbation = 0;   ///< largest perturbation accepted from Xgesvdp, relative to σ₁
};

/// The number of CUDA devices, 0 without a driver.
inline int cuda_device_count() noexcept {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();
  return 0;
}

class cuda_context {
 public:
  /// A context of our own on the current device: stream, handles and memory.
  static std::shared_ptr<cuda_context> owning(const cuda_options& options = {}) {
    return std::shared_ptr<cuda_context>(new cuda_context(
        std::make_shared<detail::cuda::cuda_stream>(options.memory_limit), {}, options));
  }
  /// A context on the engine's stream and handles, for the current device. Kernels read and write
  /// the engine's memory in the order of that stream.
  static std::shared_ptr<cuda_context> borrowing(const cuda_handles& lent,
                                                 const cuda_options& options = {}) {
    return std::shared_ptr<cuda_context>(new cuda_context(
        std::make_shared<detail::cuda::cuda_stream>(lent.stream, options.memory_limit), lent,
        options));
  }

  cuda_context(const cuda_context&) = delete;
  cuda_context& operator=(const cuda_context&) = delete;

  /// Waits for the work asked for so far, which may still use what is released here.
  ~cuda_context() { cudaStreamSynchronize(stream()); }

  cudaStream_t stream() const { return stream_->get(); }
  int device() const { return device_; }
  const cuda_options& options() const { return options_; }
  /// The device's rate of arithmetic in double, of that in float.
  double double_speed() const {
    int ratio = 0;
    detail::cuda::check(
        cudaDeviceGetAttribute(&ratio, cudaDevAttrSingleToDoublePrecisionPerfRatio, device_));
    return 1.0 / (std::max)(ratio, 1);
  }
  /// Whether the device multiplies in TF32.
  bool has_tf32() const {
    int major = 0;
    detail::cuda::check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device_));
    return major >= 8;
  }
  /// Device memory allocated by this context and by living matrices made with it.
  std::size_t bytes_in_use() const { return stream_->bytes_in_use(); }
  /// The most that there have been.
  std::size_t peak_bytes() const { return stream_->peak_bytes(); }

  void synchronize() { detail::cuda::check(cudaStreamSynchronize(stream())); }

  cuda_report report;

  // What the backend's members use.

  /// Memory that is independent of frames and may outlive the context.
  template <class T>
  std::shared_ptr<T[]> allocate(index_t count) {
    check_device();
    const auto bytes = (std::max)(static_cast<std::size_t>(count) * sizeof(T), std::size_t{1});
    return {static_cast<T*>(stream_->allocate(bytes)),
            [s = stream_, bytes](T* memory) { s->deallocate(memory, bytes); }};
  }

  detail::cuda::cublas_lease cublas() {
    check_device();
    if (lent_.cublas != nullptr) return {lent_, stream()};
    return detail::cuda::cublas_lease(cublas_.get());
  }

  detail::cuda::cusolver_lease cusolver() {
    check_device();
    if (lent_.cusolver != nullptr) return {lent_.cusolver, stream()};
    if (cusolver_ == nullptr) {
      cusolverDnHandle_t made = nullptr;
      detail::cuda::check(cusolverDnCreate(&made));
      cusolver_.reset(made);
      detail::cuda::check(cusolverDnSetStream(made, stream()));
    }
    return detail::cuda::cusolver_lease(cusolver_.get());
  }

  /// cuSOLVER's default algorithms.
  cusolverDnParams_t params() {
    if (params_ == nullptr) {
      cusolverDnParams_t made = nullptr;
      detail::cuda::check(cusolverDnCreateParams(&made));
      params_.reset(made);
    }
    return params_.get();
  }

  /// `length` elements of scratch, valid until the open frame closes.
  template <class T>
  T* take(index_t length) {
    return static_cast<T*>(scratch.take(static_cast<std::size_t>(length) * sizeof(T)));
  }

  /// Host memory for cuSOLVER, which may still read it after its routine has returned: the next
  /// routine gets it when the stream has got past that one.
  void* host_workspace(std::size_t bytes) {
    if (bytes == 0) return nullptr;
    synchronize();
    if (bytes > host_workspace_.size()) host_workspace_.resize(bytes);
    return host_workspace_.data();
  }

  template <class... Args>
  void launch(detail::cuda::launch_shape shape, const std::string& kernel, Args... args) {
    check_device();
    kernels_.launch(stream(), shape, kernel, {}, args...);
  }
  /// Launches a kernel of an engine's own, from text that is compiled behind the library's kernels
  /// and may use what they are made of. Its name must be none of theirs. Does not wait; a kernel's
  /// first launch compiles it. Throws backend_error where that or the launch fails.
  template <class... Args>
  void launch_added(std::string_view addition, detail::cuda::launch_shape shape,
                    const std::string& kernel, Args... args) {
    check_device();
    kernels_.launch(stream(), shape, kernel, addition, args...);
  }

  /// Queues a copy; `to` has the numbers after the next synchronize().
  template <class T>
  void copy_to_host(const T* from, T* to, index_t count) {
    check_device();
    detail::cuda::check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(count) * sizeof(T),
                                        cudaMemcpyDeviceToHost, stream()));
  }
  /// Waits for everything queued, this copy included.
  template <class T>
  void read(const T* from, T* to, index_t count) {
    copy_to_host(from, to, count);
    synchronize();
  }
  template <class T>
  void clear(T* memory, index_t count) {
    check_device();
    detail::cuda::check(
        cudaMemsetAsync(memory, 0, static_cast<std::size_t>(count) * sizeof(T), stream()));
  }

  /// Throws unless this context's device is current.
  void check_device() const {
    int current = 0;
    detail::cuda::check(cudaGetDevice(&current));
    detail::require(current == device_, "a CUDA context on device ", device_,
                    " is used while device ", current, " is current");
  }

 private:
  struct destroy {
    void operator()(cublasHandle_t handle) const { cublasDestroy(handle); }
    void operator()(cusolverDnHandle_t handle) const { cusolverDnDestroy(handle); }
    void operator()(cusolverDnParams_t params) const { cusolverDnDestroyParams(params); }
  };
  template <class Handle>
  using owned = std::unique_ptr<std::remove_pointer_t<Handle>, destroy>;

  cuda_context(std::shared_ptr<detail::cuda::cuda_stream> stream, const cuda_handles& lent,
               const cuda_options& options)
      : stream_(std::move(stream)),
        lent_(lent),
        options_(options),
        kernels_(options.kernel_cache),
        scratch(make_scratch()) {
    detail::require(options.tokens_per_product >= 0, "tokens_per_product is ",
                    options.tokens_per_product);
    detail::cuda::check(cudaGetDevice(&device_));
    if (lent_.cublas == nullptr) {
      cublasHandle_t made = nullptr;
      detail::cuda::check(cublasCreate(&made));
      cublas_.reset(made);
      detail::cuda::check(cublasSetStream(made, this->stream()));
      detail::cuda::cublas_lease::configure(made);
    }
  }

  workspace<detail::cuda::cuda_memory> make_scratch() {
    const detail::cuda::cuda_memory memory{stream_};
    if (options_.workspace == nullptr) return workspace<detail::cuda::cuda_memory>(memory);
    return {options_.workspace, options_.workspace_bytes, memory};
  }

  std::shared_ptr<detail::cuda::cuda_stream> stream_;
  cuda_handles lent_;
  cuda_options options_;
  int device_ = 0;
  owned<cublasHandle_t> cublas_;
  owned<cusolverDnHandle_t> cusolver_;
  owned<cusolverDnParams_t> params_;
  detail::cuda::cuda_kernels kernels_;
  std::vector<std::byte> host_workspace_;

 public:
  workspace<detail::cuda::cuda_memory>
      scratch; ///< scratch.peak() tells the workspace that a call took
};

} // namespace v0
} // namespace ressvd
