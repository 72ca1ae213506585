// SPDX-License-Identifier: Apache-2.0
//
// cuBLAS over blocks: the 64-bit interface, for each pair of types that the backend needs.
#pragma once

#include "ressvd/backend/cuda/context.hpp"
#include "ressvd/core/matrix_view.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {
namespace cuda {

template <class T>
using device_block = block<T, cuda_space>;

/// CUDA's word for an element type.
template <storage_scalar T>
constexpr cudaDataType_t cuda_type() {
  if constexpr (std::is_same_v<T, float>) {
    return CUDA_R_32F;
  } else if constexpr (std::is_same_v<T, double>) {
    return CUDA_R_64F;
  } else if constexpr (std::is_same_v<T, half>) {
    return CUDA_R_16F;
  } else {
    return CUDA_R_16BF;
  }
}

constexpr cublasOperation_t to_cublas(op o) {
  return o == op::none ? CUBLAS_OP_N : CUBLAS_OP_T;
}
constexpr cublasSideMode_t to_cublas(side s) {
  return s == side::left ? CUBLAS_SIDE_LEFT : CUBLAS_SIDE_RIGHT;
}

/// c ← alpha·op(a)·op(b) + beta·c with factors of type U and sums of type T: U = T, or float sums
/// of 16-bit factors, which are multiplied exactly (on tensor cores). Factors in float are rounded
/// to 11 bits where `reduced` or the context asks for it. Nothing may be empty.
template <storage_scalar U, compute_scalar T>
void gemm(cuda_context& context, op oa, op ob, T alpha, device_block<const U> a,
          device_block<const U> b, T beta, device_block<T> c, bool reduced = false) {
  static_assert(std::is_same_v<U, T> || (std::is_same_v<T, float> && sizeof(U) == 2));
  const index_t depth = oa == op::none ? a.cols : a.rows;
  const bool tf32 = std::is_same_v<U, float> && (reduced || context.options().tf32);
  const cublasComputeType_t arithmetic = std::is_same_v<T, double> ? CUBLAS_COMPUTE_64F
                                         : tf32                    ? CUBLAS_COMPUTE_32F_FAST_TF32
                                                                   : CUBLAS_COMPUTE_32F;
  check(cublasGemmEx_64(context.cublas(), to_cublas(oa), to_cublas(ob), c.rows, c.cols, depth,
                        &alpha, a.data, cuda_type<U>(), a.ld, b.data, cuda_type<U>(), b.ld, &beta,
                        c.data, cuda_type<T>(), c.ld, arithmetic, CUBLAS_GEMM_DEFAULT));
}

/// The same for `count` triples, each `a_step`, `b_step`, `c_step` elements behind the one before.
template <storage_scalar U, compute_scalar T>
void gemm_batch(cuda_context& context, op oa, op ob, T alpha, device_block<const U> a,
                index_t a_step, device_block<const U> b, index_t b_step, T beta, device_block<T> c,
                index_t c_step, index_t count) {
  static_assert(std::is_same_v<T, float> && (std::is_same_v<U, float> || sizeof(U) == 2));
  const index_t depth = oa == op::none ? a.cols : a.rows;
  check(cublasGemmStridedBatchedEx_64(
      context.cublas(), to_cublas(oa), to_cublas(ob), c.rows, c.cols, depth, &alpha, a.data,
      cuda_type<U>(), a.ld, a_step, b.data, cuda_type<U>(), b.ld, b_step, &beta, c.data,
      cuda_type<T>(), c.ld, c_step, count, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
}

/// out ← op(L)·in or in·op(L). cuBLAS's trmm is out of place.
template <compute_scalar T>
void trmm(cuda_context& context, side s, op o, device_block<const T> l, device_block<const T> in,
          device_block<T> out) {
  const T one{1};
  const auto call = [&](auto routine) {
    check(routine(context.cublas(), to_cublas(s), CUBLAS_FILL_MODE_LOWER, to_cublas(o),
                  CUBLAS_DIAG_NON_UNIT, out.rows, out.cols, &one, l.data, l.ld, in.data, in.ld,
                  out.data, out.ld));
  };
  if constexpr (std::is_same_v<T, float>) {
    call(&cublasStrmm_64);
  } else {
    call(&cublasDtrmm_64);
  }
}

/// c ← op(L)⁻¹·c or c·op(L)⁻¹.
template <compute_scalar T>
void trsm(cuda_context& context, side s, op o, device_block<const T> l, device_block<T> c) {
  const T one{1};
  const auto call = [&](auto routine) {
    check(routine(context.cublas(), to_cublas(s), CUBLAS_FILL_MODE_LOWER, to_cublas(o),
                  CUBLAS_DIAG_NON_UNIT, c.rows, c.cols, &one, l.data, l.ld, c.data, c.ld));
  };
  if constexpr (std::is_same_v<T, float>) {
    call(&cublasStrsm_64);
  } else {
    call(&cublasDtrsm_64);
  }
}

} // namespace cuda
} // namespace detail
} // namespace v0
} // namespace ressvd
