// SPDX-License-Identifier: Apache-2.0
//
// A stand-in for the CUDA libraries, on the host: enough of cudart, cuBLAS, cuSOLVER, NVRTC and the
// driver for the CUDA tests to run, and strict where real devices are forgiving or merely fast.
//
//   - Device memory cannot be touched by the host: its addresses are mapped without access, the
//     bytes lie elsewhere. Host memory is refused where device memory belongs, and the reverse.
//   - Work runs when its stream is waited for, never earlier: what is read too early, or done on
//     the wrong stream, shows.
//   - New memory is NaN, freed memory is NaN again, its surroundings are watched, and no pointer
//     into freed memory is accepted.
//   - cuBLAS and cuSOLVER answer as their documentation says, by way of BLAS and LAPACK; arguments
//     are checked, destroyed operands and workspaces are overwritten.
//   - Where a device was seen to do worse than documented, so does cuSOLVER here: SVDs and
//     eigenvalue routines write between columns, Cholesky notices bad pivots late.
//   - Kernels are compiled by the host's compiler, a block's threads taking turns at barriers.
//
// Misuse ends the program with a message. It says nothing about speed, and nothing else that cuBLAS
// and cuSOLVER do beyond their documentation: tests that pass here have not passed on a device.
#pragma once

#include <cublas_v2.h>
#include <cuda_runtime_api.h>
#include <cusolverDn.h>

#include <cstddef>
#include <cstdint>
#include <functional>

namespace stand_in {

/// What a routine of cuSOLVER does wrong. All but none and wrong_values leave no usable result.
enum class fault {
  none,
  unconverged,  ///< success, and info > 0
  wrong_values, ///< success, and twice the values
  refused,      ///< its question for a workspace ends with CUSOLVER_STATUS_INVALID_VALUE
  failed,       ///< CUSOLVER_STATUS_EXECUTION_FAILED, and an error for cudaGetLastError
  no_memory,    ///< CUSOLVER_STATUS_ALLOC_FAILED
  device_lost   ///< failed, and every later wait reports an illegal address
};

/// What tests may set and ask.
struct controls {
  fault syevd = fault::none; ///< of the next call alone, like the other faults
  fault syevj = fault::none;
  fault gesvdp = fault::none;
  fault gesvd = fault::none;
  fault geqrf = fault::none;
  double gesvdp_perturbation = 0;
  int compute_capability = 90;
  int double_ratio = 2; ///< the rate of arithmetic in float, of that in double
  bool device_lost = false;
  long waits = 0;        ///< cudaStreamSynchronize calls
  long compilations = 0; ///< nvrtcCompileProgram calls
};
extern controls control;

inline constexpr int multiprocessors = 2;

std::size_t bytes_in_use();
void* workspace_of(cublasHandle_t handle);

/// Prints why and ends the program.
[[noreturn, gnu::format(printf, 1, 2)]] void misuse(const char* format, ...);

/// The bytes behind `size` bytes of device memory.
char* device(const void* address, std::size_t size, const char* what);
template <class T>
T* device_array(const void* address, std::int64_t count, const char* what) {
  if (reinterpret_cast<std::uintptr_t>(address) % alignof(T) != 0) misuse("%s: misaligned", what);
  return reinterpret_cast<T*>(device(address, static_cast<std::size_t>(count) * sizeof(T), what));
}
/// The same for a column-major matrix, whose leading dimension is checked too.
template <class T>
T* device_matrix(const void* address, std::int64_t rows, std::int64_t cols, std::int64_t ld,
                 const char* what) {
  if (rows <= 0 || cols <= 0) misuse("%s: empty", what);
  if (ld < rows) misuse("%s: leading dimension below the %lld rows", what, (long long)rows);
  return device_array<T>(address, (cols - 1) * ld + rows, what);
}

/// `address`, unless it is null or device memory.
void* host(const void* address, const char* what);

void enqueue(cudaStream_t stream, std::function<void()> work);

/// What cudaGetLastError finds, once.
void leave_error(cudaError_t status);

} // namespace stand_in
