// SPDX-License-Identifier: Apache-2.0
//
// Device memory in stream order. Work queued before may still use a block that is freed here; only
// work queued after, on the same stream, reuses it. So neither side waits.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>

#include "ressvd/backend/cuda/error.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {
namespace cuda {

/// A stream, with the memory that is allocated on it (cudaMallocAsync). Shared by a context and by
/// every matrix made with it, so that the stream outlives their memory.
class cuda_stream {
 public:
  /// A stream of our own, not ordered with the legacy default stream.
  explicit cuda_stream(std::size_t limit) : limit_(limit), owned_(true) {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }
  /// The engine's, which must outlive this object.
  cuda_stream(cudaStream_t borrowed, std::size_t limit) : stream_(borrowed), limit_(limit) {}

  cuda_stream(const cuda_stream&) = delete;
  cuda_stream& operator=(const cuda_stream&) = delete;
  ~cuda_stream() {
    if (owned_) cudaStreamDestroy(stream_); // memory still queued to be freed is freed first
  }

  cudaStream_t get() const { return stream_; }
  std::size_t bytes_in_use() const { return in_use_; }
  std::size_t peak_bytes() const { return peak_; }

  void* allocate(std::size_t bytes) {
    const std::size_t before = in_use_.fetch_add(bytes);
    void* memory = nullptr;
    cudaError_t status = cudaErrorMemoryAllocation;
    if (limit_ == 0 || before + bytes <= limit_) status = cudaMallocAsync(&memory, bytes, stream_);
    if (status == cudaSuccess) {
      std::size_t peak = peak_;
      while (peak < before + bytes && !peak_.compare_exchange_weak(peak, before + bytes)) {
      }
      return memory;
    }
    in_use_ -= bytes;
    if (status != cudaErrorMemoryAllocation) check(status);
    cudaGetLastError();
    if (limit_ > 0 && before + bytes > limit_) {
      fail<workspace_error>("could not allocate ", bytes, " bytes of device memory: ", before,
                            " of the limit of ", limit_, " bytes are in use");
    }
    std::size_t available = 0;
    std::size_t total = 0;
    cudaMemGetInfo(&available, &total);
    fail<workspace_error>("could not allocate ", bytes, " bytes of device memory: ", available,
                          " of ", total, " bytes are free, ", before, " are in use here");
  }

  void deallocate(void* memory, std::size_t bytes) noexcept {
    cudaFreeAsync(memory, stream_);
    in_use_ -= bytes;
  }

 private:
  cudaStream_t stream_ = nullptr;
  std::size_t limit_ = 0;
  bool owned_ = false;
  std::atomic<std::size_t> in_use_ = 0; // a matrix may be destroyed by another thread
  std::atomic<std::size_t> peak_ = 0;
};

/// What workspace allocates with.
struct cuda_memory {
  std::shared_ptr<cuda_stream> stream;

  void* allocate(std::size_t bytes) { return stream->allocate(bytes); }
  void deallocate(void* memory, std::size_t bytes) noexcept { stream->deallocate(memory, bytes); }
};

} // namespace cuda
} // namespace detail
} // namespace v0
} // namespace ressvd
