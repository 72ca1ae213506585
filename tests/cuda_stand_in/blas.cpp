// SPDX-License-Identifier: Apache-2.0
//
// cuBLAS by way of CBLAS.
#include <cblas.h>

#include <bit>
#include <cstring>
#include <type_traits>
#include <vector>

#include "cuda_stand_in/stand_in.hpp"
#include "ressvd/core/scalar.hpp"

struct cublasContext {
  cudaStream_t stream = nullptr;
  cublasPointerMode_t pointer_mode = CUBLAS_POINTER_MODE_HOST;
  cublasMath_t math_mode = CUBLAS_DEFAULT_MATH;
  void* workspace = nullptr;
};

namespace stand_in {

void* workspace_of(cublasHandle_t handle) {
  return handle->workspace;
}

namespace {

CBLAS_TRANSPOSE to_cblas(cublasOperation_t o) {
  return o == CUBLAS_OP_N ? CblasNoTrans : CblasTrans;
}
CBLAS_SIDE to_cblas(cublasSideMode_t s) {
  return s == CUBLAS_SIDE_LEFT ? CblasLeft : CblasRight;
}
int to_int(std::int64_t n) {
  return static_cast<int>(n);
}

template <class T>
T scalar(cublasHandle_t handle, const void* value) {
  if (handle->pointer_mode != CUBLAS_POINTER_MODE_HOST) misuse("a host scalar in device mode");
  return *static_cast<const T*>(host(value, "scalar"));
}

/// A matrix on the device, read when it is its turn.
struct factor {
  const char* data;
  cudaDataType type;
  std::int64_t rows, cols, ld;

  template <class T>
  std::vector<T> read(bool tf32 = false) const {
    std::vector<T> out(static_cast<std::size_t>(rows * cols));
    for (std::int64_t j = 0; j < cols; ++j) {
      for (std::int64_t i = 0; i < rows; ++i) {
        T value = element<T>(i + j * ld);
        if constexpr (sizeof(T) == sizeof(float)) {
          if (tf32) value = to_tf32(value);
        }
        out[static_cast<std::size_t>(i + j * rows)] = value;
      }
    }
    return out;
  }

 private:
  template <class U>
  U stored(std::int64_t k) const {
    return reinterpret_cast<const U*>(data)[k];
  }
  template <class T>
  T element(std::int64_t k) const {
    if (type == CUDA_R_64F) return static_cast<T>(stored<double>(k));
    if (type == CUDA_R_32F) return static_cast<T>(stored<float>(k));
    if (type == CUDA_R_16F) return ressvd::load<T>(stored<ressvd::half>(k));
    return ressvd::load<T>(stored<ressvd::bfloat16>(k));
  }
  static float to_tf32(float value) { // round to nearest even at 10 fraction bits
    const auto bits = std::bit_cast<std::uint32_t>(value);
    return std::bit_cast<float>((bits + 0xfffu + ((bits >> 13) & 1u)) & 0xffffe000u);
  }
};

factor read_later(const void* address, cudaDataType type, std::int64_t rows, std::int64_t cols,
                  std::int64_t ld, const char* what) {
  const void* data =
      type == CUDA_R_64F ? device_matrix<double>(address, rows, cols, ld, what)
      : type == CUDA_R_32F
          ? device_matrix<float>(address, rows, cols, ld, what)
          : static_cast<const void*>(device_matrix<std::uint16_t>(address, rows, cols, ld, what));
  return {static_cast<const char*>(data), type, rows, cols, ld};
}

void gemm(cublasOperation_t oa, cublasOperation_t ob, const factor& a, const factor& b, bool tf32,
          double alpha, double beta, double* c, std::int64_t m, std::int64_t n, std::int64_t ld) {
  const std::int64_t k = oa == CUBLAS_OP_N ? a.cols : a.rows;
  const auto x = a.read<double>(tf32);
  const auto y = b.read<double>(tf32);
  cblas_dgemm(CblasColMajor, to_cblas(oa), to_cblas(ob), to_int(m), to_int(n), to_int(k), alpha,
              x.data(), to_int(a.rows), y.data(), to_int(b.rows), beta, c, to_int(ld));
}
void gemm(cublasOperation_t oa, cublasOperation_t ob, const factor& a, const factor& b, bool tf32,
          float alpha, float beta, float* c, std::int64_t m, std::int64_t n, std::int64_t ld) {
  const std::int64_t k = oa == CUBLAS_OP_N ? a.cols : a.rows;
  const auto x = a.read<float>(tf32);
  const auto y = b.read<float>(tf32);
  cblas_sgemm(CblasColMajor, to_cblas(oa), to_cblas(ob), to_int(m), to_int(n), to_int(k), alpha,
              x.data(), to_int(a.rows), y.data(), to_int(b.rows), beta, c, to_int(ld));
}

/// beta = 0 must not read c, which CBLAS does not promise.
template <class T>
void clear_if(bool wanted, T* c, std::int64_t m, std::int64_t n, std::int64_t ld) {
  for (std::int64_t j = 0; wanted && j < n; ++j) {
    for (std::int64_t i = 0; i < m; ++i)
      c[i + j * ld] = 0;
  }
}

template <class T>
cublasStatus_t queue_gemm(cublasHandle_t handle, cublasOperation_t oa, cublasOperation_t ob,
                          std::int64_t m, std::int64_t n, const void* alpha, factor a, factor b,
                          const void* beta, void* c, std::int64_t ldc, bool tf32) {
  T* const out = device_matrix<T>(c, m, n, ldc, "gemm, C");
  const T x = scalar<T>(handle, alpha);
  const T y = scalar<T>(handle, beta);
  enqueue(handle->stream, [=] {
    clear_if(y == T{0}, out, m, n, ldc);
    gemm(oa, ob, a, b, tf32, x, y, out, m, n, ldc);
  });
  return CUBLAS_STATUS_SUCCESS;
}

void check_lower(cublasFillMode_t fill, cublasDiagType_t diagonal) {
  if (fill != CUBLAS_FILL_MODE_LOWER || diagonal != CUBLAS_DIAG_NON_UNIT) {
    misuse("only lower, non-unit triangles are known here");
  }
}

template <class T, class Routine>
cublasStatus_t queue_triangular(cublasHandle_t handle, Routine routine, cublasSideMode_t side,
                                cublasFillMode_t fill, cublasOperation_t o,
                                cublasDiagType_t diagonal, std::int64_t m, std::int64_t n,
                                const T* alpha, const T* a, std::int64_t lda, const T* in,
                                std::int64_t ld_in, T* out, std::int64_t ld_out) {
  check_lower(fill, diagonal);
  const std::int64_t order = side == CUBLAS_SIDE_LEFT ? m : n;
  const T* const triangle = device_matrix<T>(a, order, order, lda, "triangle");
  const T* const source = device_matrix<T>(in, m, n, ld_in, "triangular, B");
  T* const target = device_matrix<T>(out, m, n, ld_out, "triangular, C");
  const T factor = scalar<T>(handle, alpha);
  enqueue(handle->stream, [=] {
    for (std::int64_t j = 0; j < n; ++j)
      std::memmove(target + j * ld_out, source + j * ld_in,
                   static_cast<std::size_t>(m) * sizeof(T));
    routine(CblasColMajor, to_cblas(side), CblasLower, to_cblas(o), CblasNonUnit, to_int(m),
            to_int(n), factor, triangle, to_int(lda), target, to_int(ld_out));
  });
  return CUBLAS_STATUS_SUCCESS;
}

} // namespace
} // namespace stand_in

using namespace stand_in;

extern "C" {

cublasStatus_t cublasCreate_v2(cublasHandle_t* handle) {
  *handle = new cublasContext;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasDestroy_v2(cublasHandle_t handle) {
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetStream_v2(cublasHandle_t handle, cudaStream_t stream) {
  handle->stream = stream;
  handle->workspace = nullptr; // as documented
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasGetStream_v2(cublasHandle_t handle, cudaStream_t* stream) {
  *stream = handle->stream;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetPointerMode_v2(cublasHandle_t handle, cublasPointerMode_t mode) {
  handle->pointer_mode = mode;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasGetPointerMode_v2(cublasHandle_t handle, cublasPointerMode_t* mode) {
  *mode = handle->pointer_mode;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetMathMode(cublasHandle_t handle, cublasMath_t mode) {
  handle->math_mode = mode;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasGetMathMode(cublasHandle_t handle, cublasMath_t* mode) {
  *mode = handle->math_mode;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t handle, void* memory, std::size_t) {
  handle->workspace = memory;
  return CUBLAS_STATUS_SUCCESS;
}
const char* cublasGetStatusName(cublasStatus_t) {
  return "CUBLAS_STATUS";
}

cublasStatus_t cublasGemmEx_64(cublasHandle_t handle, cublasOperation_t oa, cublasOperation_t ob,
                               std::int64_t m, std::int64_t n, std::int64_t k, const void* alpha,
                               const void* a, cudaDataType type_a, std::int64_t lda, const void* b,
                               cudaDataType type_b, std::int64_t ldb, const void* beta, void* c,
                               cudaDataType type_c, std::int64_t ldc, cublasComputeType_t compute,
                               cublasGemmAlgo_t) {
  const bool in_double = type_c == CUDA_R_64F;
  if (type_a != type_b || (type_a == CUDA_R_64F) != in_double ||
      (type_c != CUDA_R_64F && type_c != CUDA_R_32F) ||
      (compute == CUBLAS_COMPUTE_64F) != in_double) {
    return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  const bool a_stands = oa == CUBLAS_OP_N;
  const bool b_stands = ob == CUBLAS_OP_N;
  const factor x = read_later(a, type_a, a_stands ? m : k, a_stands ? k : m, lda, "gemm, A");
  const factor y = read_later(b, type_b, b_stands ? k : n, b_stands ? n : k, ldb, "gemm, B");
  const bool tf32 =
      compute == CUBLAS_COMPUTE_32F_FAST_TF32 || handle->math_mode == CUBLAS_TF32_TENSOR_OP_MATH;
  return in_double ? queue_gemm<double>(handle, oa, ob, m, n, alpha, x, y, beta, c, ldc, false)
                   : queue_gemm<float>(handle, oa, ob, m, n, alpha, x, y, beta, c, ldc, tf32);
}

cublasStatus_t cublasGemmStridedBatchedEx_64(
    cublasHandle_t handle, cublasOperation_t oa, cublasOperation_t ob, std::int64_t m,
    std::int64_t n, std::int64_t k, const void* alpha, const void* a, cudaDataType type_a,
    std::int64_t lda, long long step_a, const void* b, cudaDataType type_b, std::int64_t ldb,
    long long step_b, const void* beta, void* c, cudaDataType type_c, std::int64_t ldc,
    long long step_c, std::int64_t count, cublasComputeType_t compute, cublasGemmAlgo_t algorithm) {
  if (count < 1) return CUBLAS_STATUS_INVALID_VALUE;
  if (step_c < m && count > 1) misuse("batched gemm: results that overlap");
  const auto behind = [](auto* from, cudaDataType type, long long elements) {
    const long long size = type == CUDA_R_64F ? 8 : type == CUDA_R_32F ? 4 : 2;
    using byte = std::conditional_t<std::is_const_v<std::remove_pointer_t<decltype(from)>>,
                                    const char, char>;
    return static_cast<byte*>(from) + elements * size;
  };
  for (std::int64_t i = 0; i < count; ++i) {
    const cublasStatus_t status =
        cublasGemmEx_64(handle, oa, ob, m, n, k, alpha, behind(a, type_a, i * step_a), type_a, lda,
                        behind(b, type_b, i * step_b), type_b, ldb, beta,
                        behind(c, type_c, i * step_c), type_c, ldc, compute, algorithm);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
  }
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasStrmm_v2_64(cublasHandle_t handle, cublasSideMode_t side,
                                 cublasFillMode_t fill, cublasOperation_t o,
                                 cublasDiagType_t diagonal, std::int64_t m, std::int64_t n,
                                 const float* alpha, const float* a, std::int64_t lda,
                                 const float* b, std::int64_t ldb, float* c, std::int64_t ldc) {
  return queue_triangular(handle, &cblas_strmm, side, fill, o, diagonal, m, n, alpha, a, lda, b,
                          ldb, c, ldc);
}
cublasStatus_t cublasDtrmm_v2_64(cublasHandle_t handle, cublasSideMode_t side,
                                 cublasFillMode_t fill, cublasOperation_t o,
                                 cublasDiagType_t diagonal, std::int64_t m, std::int64_t n,
                                 const double* alpha, const double* a, std::int64_t lda,
                                 const double* b, std::int64_t ldb, double* c, std::int64_t ldc) {
  return queue_triangular(handle, &cblas_dtrmm, side, fill, o, diagonal, m, n, alpha, a, lda, b,
                          ldb, c, ldc);
}
cublasStatus_t cublasStrsm_v2_64(cublasHandle_t handle, cublasSideMode_t side,
                                 cublasFillMode_t fill, cublasOperation_t o,
                                 cublasDiagType_t diagonal, std::int64_t m, std::int64_t n,
                                 const float* alpha, const float* a, std::int64_t lda, float* b,
                                 std::int64_t ldb) {
  return queue_triangular<float>(handle, &cblas_strsm, side, fill, o, diagonal, m, n, alpha, a, lda,
                                 b, ldb, b, ldb);
}
cublasStatus_t cublasDtrsm_v2_64(cublasHandle_t handle, cublasSideMode_t side,
                                 cublasFillMode_t fill, cublasOperation_t o,
                                 cublasDiagType_t diagonal, std::int64_t m, std::int64_t n,
                                 const double* alpha, const double* a, std::int64_t lda, double* b,
                                 std::int64_t ldb) {
  return queue_triangular<double>(handle, &cblas_dtrsm, side, fill, o, diagonal, m, n, alpha, a,
                                  lda, b, ldb, b, ldb);
}

} // extern "C"
