// SPDX-License-Identifier: Apache-2.0
//
// The device code of the CUDA backend, as text for NVRTC: the few things that cuBLAS and cuSOLVER
// cannot express (conversions of element type and layout, sums of magnitudes, triangles, random
// numbers). It includes nothing, so it compiles where only the run-time libraries are installed.
//
// Blocks are column-major. Kernels over elements and over tiles run on a grid of any size (each
// block strides over what is left); all sums are taken in a fixed order, so results do not depend
// on the grid's timing. Compiled with --device-as-default-execution-space.
#pragma once

namespace ressvd {
inline namespace v0 {
namespace detail {
namespace cuda {

inline constexpr const char* kernel_source = R"kernels(
namespace ressvd {

typedef long long index;
struct half { unsigned short bits; };
struct bfloat16 { unsigned short bits; };

// The value of a stored element, float for the 16-bit types.
inline double value(double x) { return x; }
inline float value(float x) { return x; }
inline float value(half x) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(x.bits));
  return f;
}
inline float value(bfloat16 x) { return __uint_as_float((unsigned)x.bits << 16); }

// The stored form of a value, rounded to nearest even.
template <class U> struct stored {
  template <class T> static U of(T x) { return (U)x; }
};
template <> struct stored<half> {
  static half of(float x) {
    half h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h.bits) : "f"(x));
    return h;
  }
};
template <> struct stored<bfloat16> {
  static bfloat16 of(float x) {
    const unsigned bits = __float_as_uint(x);
    bfloat16 b;
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
      b.bits = (unsigned short)((bits >> 16) | 0x40u);
    } else {
      b.bits = (unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
    }
    return b;
  }
};

template <class F> inline void for_each(index rows, index cols, F f) {
  for (index j = blockIdx.y * (index)blockDim.y + threadIdx.y; j < cols;
       j += gridDim.y * (index)blockDim.y) {
    for (index i = blockIdx.x * (index)blockDim.x + threadIdx.x; i < rows;
         i += gridDim.x * (index)blockDim.x) {
      f(i, j);
    }
  }
}

// f(first row, first column) of each 32 x 32 tile.
template <class F> inline void for_each_tile(index rows, index cols, F f) {
  for (index j = blockIdx.y * (index)32; j < cols; j += gridDim.y * (index)32) {
    for (index i = blockIdx.x * (index)32; i < rows; i += gridDim.x * (index)32) f(i, j);
  }
}

inline bool leads_block() { return threadIdx.x == 0 && threadIdx.y == 0; }

// op over the 32 x 8 values of a block, in a fixed order; the result is valid in its first thread.
template <class T, class Op> inline T reduce_block(T mine, Op op) {
  __shared__ T values[256];
  const int k = (int)(threadIdx.x + 32 * threadIdx.y);
  values[k] = mine;
  __syncthreads();
  for (int step = 128; step > 0; step /= 2) {
    if (k < step) values[k] = op(values[k], values[k + step]);
    __syncthreads();
  }
  return values[0];
}

template <class From, class To>
__global__ void copy(const From* in, index in_ld, To* out, index out_ld, index rows, index cols) {
  for_each(rows, cols, [=](index i, index j) {
    out[i + j * out_ld] = stored<To>::of(value(in[i + j * in_ld]));
  });
}

// out(j, i) = in(i, j) for in: rows x cols.
template <class From, class To>
__global__ void transpose(const From* in, index in_ld, To* out, index out_ld, index rows,
                          index cols) {
  __shared__ To tile[32][33];
  for_each_tile(rows, cols, [=](index i0, index j0) {
    for (index k = threadIdx.y; k < 32; k += 8) {
      const index i = i0 + threadIdx.x, j = j0 + k;
      if (i < rows && j < cols) tile[k][threadIdx.x] = stored<To>::of(value(in[i + j * in_ld]));
    }
    __syncthreads();
    for (index k = threadIdx.y; k < 32; k += 8) {
      const index i = i0 + k, j = j0 + threadIdx.x;
      if (i < rows && j < cols) out[j + i * out_ld] = tile[threadIdx.x][k];
    }
    __syncthreads();
  });
}

// c(i, j) = c(j, i) for i < j. Reads below the diagonal, writes above it.
template <class T> __global__ void mirror_lower(T* c, index ld, index n) {
  __shared__ T tile[32][33];
  for_each_tile(n, n, [=](index i0, index j0) {
    if (i0 < j0) return;
    for (index k = threadIdx.y; k < 32; k += 8) {
      const index i = i0 + threadIdx.x, j = j0 + k;
      if (i < n && j < i) tile[k][threadIdx.x] = c[i + j * ld];
    }
    __syncthreads();
    for (index k = threadIdx.y; k < 32; k += 8) {
      const index i = i0 + k, j = j0 + threadIdx.x;
      if (i < n && j < i) c[j + i * ld] = tile[threadIdx.x][k];
    }
    __syncthreads();
  });
}

// out(i, j) = in(i, j) on and above the diagonal of the first `height` rows, else 0. out: n x n.
template <class T>
__global__ void copy_upper(const T* in, index in_ld, index height, T* out, index out_ld, index n) {
  for_each(n, n, [=](index i, index j) {
    out[i + j * out_ld] = i <= j && i < height ? in[i + j * in_ld] : (T)0;
  });
}

template <class T> __global__ void fill(T* c, index ld, index rows, index cols, T alpha) {
  for_each(rows, cols, [=](index i, index j) { c[i + j * ld] = alpha; });
}

template <class T> __global__ void scale(T* c, index ld, index rows, index cols, T alpha) {
  for_each(rows, cols, [=](index i, index j) { c[i + j * ld] *= alpha; });
}

// c += alpha * a, with a in its own type.
template <class From, class T>
__global__ void add(const From* a, index a_ld, T* c, index ld, index rows, index cols, T alpha) {
  for_each(rows, cols, [=](index i, index j) { c[i + j * ld] += alpha * (T)a[i + j * a_ld]; });
}

template <class T>
__global__ void scale_rows(const T* d, T* c, index ld, index rows, index cols) {
  for_each(rows, cols, [=](index i, index j) { c[i + j * ld] *= d[i]; });
}

template <class T>
__global__ void scale_cols(const T* d, T* c, index ld, index rows, index cols) {
  for_each(rows, cols, [=](index i, index j) { c[i + j * ld] *= d[j]; });
}

template <class T> __global__ void shift_diagonal(T* c, index ld, index count, T alpha) {
  for_each(count, 1, [=](index i, index) { c[i + i * ld] += alpha; });
}

// One step of Adam, see the backend concept. centre: null for 0.
template <class T>
__global__ void adam(const T* g, index g_ld, T* m, index m_ld, T* v, index v_ld, const T* centre,
                     index centre_ld, T* c, index ld, index rows, index cols, T scale, T fresh1,
                     T fresh2, T rate, T root, T epsilon, T pull) {
  for_each(rows, cols, [=](index i, index j) {
    const T gradient = scale * g[i + j * g_ld];
    const T mean = m[i + j * m_ld] + fresh1 * (gradient - m[i + j * m_ld]);
    const T square = v[i + j * v_ld] + fresh2 * (gradient * gradient - v[i + j * v_ld]);
    const T value = c[i + j * ld];
    const T away = centre == nullptr ? value : value - centre[i + j * centre_ld];
    m[i + j * m_ld] = mean;
    v[i + j * v_ld] = square;
    c[i + j * ld] = value - (rate * mean / (root * sqrt(square) + epsilon) + pull * away);
  });
}

template <class T> __global__ void diagonal(const T* a, index ld, index count, double* out) {
  for_each(count, 1, [=](index i, index) { out[i] = a[i + i * ld]; });
}

// result = max(result, the largest magnitude) as the bits of a double: those of nonnegative
// doubles are ordered like their values, with infinity and NaN at the top.
template <class U>
__global__ void max_abs(const U* a, index ld, index rows, index cols, unsigned long long* result) {
  unsigned long long largest = 0;
  for_each(rows, cols, [=, &largest](index i, index j) {
    const double v = value(a[i + j * ld]);
    const unsigned long long bits = __double_as_longlong(v) & 0x7fffffffffffffffull;
    if (bits > largest) largest = bits;
  });
  largest = reduce_block(largest, [](unsigned long long x, unsigned long long y) {
    return x > y ? x : y;
  });
  if (leads_block()) atomicMax(result, largest);
}

// partial[block] = the block's share of the sum of a(i, j) * b(i, j).
template <class T>
__global__ void dot(const T* a, index a_ld, const T* b, index b_ld, index rows, index cols,
                    double* partial) {
  double sum = 0;
  for_each(rows, cols, [=, &sum](index i, index j) {
    sum += (double)a[i + j * a_ld] * (double)b[i + j * b_ld];
  });
  sum = reduce_block(sum, [](double x, double y) { return x + y; });
  if (leads_block()) partial[blockIdx.x + gridDim.x * blockIdx.y] = sum;
}

// sum(i) += the sum over t of |x(i, t)|, or of x(i, t) squared. A block of 32 x 32 threads takes 32
// rows; neighbouring threads follow the direction in which x is contiguous.
template <class U, class T, bool squared>
__global__ void __launch_bounds__(1024) add_row_sums(const U* x, index row_stride, index col_stride, index rows,
                             index cols, T* sum) {
  __shared__ double part[32][33];
  const bool down = row_stride == 1;
  const int row = down ? threadIdx.x : threadIdx.y;
  const int lane = down ? threadIdx.y : threadIdx.x;
  for (index first = blockIdx.x * (index)32; first < rows; first += gridDim.x * (index)32) {
    double total = 0;
    if (first + row < rows) {
      for (index t = lane; t < cols; t += 32) {
        const double v = value(x[(first + row) * row_stride + t * col_stride]);
        total += squared ? v * v : fabs(v);
      }
    }
    part[row][lane] = total;
    __syncthreads();
    total = part[threadIdx.y][threadIdx.x];
    for (int step = 16; step > 0; step /= 2) {
      total += __shfl_down_sync(0xffffffffu, total, step);
    }
    if (threadIdx.x == 0 && first + threadIdx.y < rows) sum[first + threadIdx.y] += (T)total;
    __syncthreads();
  }
}

// The generator of the CPU backends (splitmix64's finaliser over a counter), so that a seed means
// the same numbers everywhere, up to the rounding of the logarithm and the cosine.
inline double uniform(unsigned long long seed, unsigned long long counter) {
  unsigned long long z = seed + (counter + 1) * 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  z = z ^ (z >> 31);
  return ((double)(z >> 11) + 1.0) * 0x1p-53;
}

// Box-Muller: elements 2k and 2k + 1, counted down the columns, come from one pair of uniforms.
template <class T>
__global__ void random_normal(T* c, index ld, index rows, index cols, unsigned long long seed) {
  const index count = rows * cols;
  for_each((count + 1) / 2, 1, [=](index pair, index) {
    const index k = 2 * pair;
    const double radius = sqrt(-2.0 * log(uniform(seed, k)));
    double sine, cosine;
    sincospi(2.0 * uniform(seed, k + 1), &sine, &cosine);
    c[k % rows + k / rows * ld] = (T)(radius * cosine);
    if (k + 1 < count) c[(k + 1) % rows + (k + 1) / rows * ld] = (T)(radius * sine);
  });
}

template <class T>
__global__ void unit_lower(const T* in, index in_ld, T* out, index out_ld, index rows, index cols) {
  for_each(rows, cols, [=](index i, index j) {
    out[i + j * out_ld] = i > j ? in[i + j * in_ld] : (T)(i == j);
  });
}

template <class From, class To>
__global__ void scatter_rows(const From* in, index in_row, index in_col, const index* rows, To* out,
                             index out_row, index out_col, index count, index cols) {
  for_each(count, cols, [=](index i, index j) {
    out[rows[i] * out_row + j * out_col] = stored<To>::of(in[i * in_row + j * in_col]);
  });
}

// ---- y = U(V·x) + bias for a few vectors x, and its pivoted form ----

template <class T, int count> struct alignas(sizeof(T) * count) chunk { T values[count]; };

// `count` elements that lie at a multiple of the smaller of their size and 16 bytes.
template <int count, class T> inline void load(const T* from, float (&out)[count]) {
  constexpr int most = (int)(16 / sizeof(T));
  constexpr int piece = count < most ? count : most;
  for (int k = 0; k < count; k += piece) {
    const auto read = *(const chunk<T, piece>*)(from + k);
    for (int i = 0; i < piece; ++i) out[k + i] = value(read.values[i]);
  }
}

// sums[k][b] += the part of this lane in a_k·x_b, for `rows` rows a_k one after the other.
template <int wide, int rows, int batch, class F, class X>
inline void add_dots(const F* a, index ld, index cols, index begin, index step, const X* x,
                     index x_ld, float (&sums)[rows][batch]) {
#pragma unroll 4
  for (index c = begin; c + wide <= cols; c += step) {
    float elements[rows][wide];
    for (int k = 0; k < rows; ++k) load<wide>(a + k * ld + c, elements[k]);
    for (int b = 0; b < batch; ++b) {
      float inputs[wide];
      load<wide>(x + b * x_ld + c, inputs);
      for (int k = 0; k < rows; ++k) {
        for (int i = 0; i < wide; ++i) sums[k][b] += elements[k][i] * inputs[i];
      }
    }
  }
}

// write(i + k, b, a_k·x_b) for the rows a_k from i on, by one warp.
template <int wide, int rows, int batch, class F, class X, class Write>
inline void dot_rows(const F* a, index ld, index cols, const X* x, index x_ld, index i,
                     Write write) {
  const index lane = threadIdx.x;
  float sums[rows][batch] = {};
  add_dots<wide>(a, ld, cols, lane * wide, 32 * wide, x, x_ld, sums);
  if (wide > 1) add_dots<1>(a, ld, cols, cols / wide * wide + lane, 32, x, x_ld, sums);
  for (int k = 0; k < rows; ++k) {
    for (int b = 0; b < batch; ++b) {
      for (int step = 16; step > 0; step /= 2)
        sums[k][b] += __shfl_xor_sync(0xffffffffu, sums[k][b], step);
      if (lane == 0) write(i + k, b, sums[k][b]);
    }
  }
}

// The same for all rows, one or two at a time, by all warps of the grid.
template <int wide, int batch, class F, class X, class Write>
inline void dot_all_rows(const F* a, index ld, index rows, index cols, const X* x, index x_ld,
                         Write write) {
  constexpr int together = batch > 2 ? 2 : 1;
  const index first = (blockIdx.x * (index)blockDim.y + threadIdx.y) * together;
  for (index i = first; i < rows; i += gridDim.x * (index)blockDim.y * together) {
    if (i + together <= rows) {
      dot_rows<wide, together, batch>(a + i * ld, ld, cols, x, x_ld, i, write);
    } else {
      dot_rows<wide, 1, batch>(a + i * ld, ld, cols, x, x_ld, i, write);
    }
  }
}

// a: rows x cols by rows, x: cols x batch by columns; wide: elements that are read at once, as
// alignment allows. The products go to t (rows x batch), to y + bias, or to both; row i of a makes
// row order[i] of y, where there is an order.
template <class F, class X, class Y, int batch, int wide>
__global__ void few_products(const F* a, index a_ld, index rows, index cols, const X* x, index x_ld,
                             float* t, index t_ld, const index* order, const float* bias,
                             index bias_step, Y* y, index y_ld) {
  dot_all_rows<wide, batch>(a, a_ld, rows, cols, x, x_ld, [=](index i, int b, float sum) {
    if (t != nullptr) t[i + b * t_ld] = sum;
    if (y == nullptr) return;
    const index row = order == nullptr ? i : order[i];
    y[row + b * y_ld] = stored<Y>::of(bias == nullptr ? sum : sum + bias[row * bias_step]);
  });
}

} // namespace ressvd
)kernels";

} // namespace cuda
} // namespace detail
} // namespace v0
} // namespace ressvd
