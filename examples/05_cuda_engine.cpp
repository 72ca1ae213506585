// SPDX-License-Identifier: Apache-2.0
//
// An engine on the GPU compresses one of its layers. It gathers the Gram of the layer's inputs
// during its forward passes, on its own stream and cuBLAS handle. It then factors the layer's
// weights, puts the factors in the weights' place in memory, and goes on with two thin products.
// Nothing but the report leaves the device.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <random>
#include <stdexcept>
#include <utility>
#include <vector>

#include "ressvd/cuda.hpp"

namespace {

using ressvd::bfloat16;
using ressvd::index_t;

void require(bool done, const char* what) {
  if (!done) throw std::runtime_error(what);
}

/// The engine's device memory.
class buffer {
 public:
  explicit buffer(index_t elements) {
    require(
        cudaMalloc(&memory_, static_cast<std::size_t>(elements) * sizeof(bfloat16)) == cudaSuccess,
        "cudaMalloc");
  }
  explicit buffer(const std::vector<bfloat16>& host) : buffer(static_cast<index_t>(host.size())) {
    require(cudaMemcpy(memory_, host.data(), host.size() * sizeof(bfloat16),
                       cudaMemcpyHostToDevice) == cudaSuccess,
            "cudaMemcpy");
  }
  buffer(const buffer&) = delete;
  buffer& operator=(const buffer&) = delete;
  ~buffer() { cudaFree(memory_); }
  bfloat16* data() const { return static_cast<bfloat16*>(memory_); }

 private:
  void* memory_ = nullptr;
};

/// y = W·x. The memory holds W (out × in), or U (out × rank) and behind it V (rank × in), all
/// row-major.
struct linear {
  index_t out;
  index_t in;
  buffer memory;
  index_t rank = 0; ///< 0: W as it was

  bfloat16* u() const { return memory.data(); }
  bfloat16* v() const { return memory.data() + out * rank; }
};

class engine {
 public:
  engine() {
    require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess, "stream");
    require(cublasCreate(&cublas) == CUBLAS_STATUS_SUCCESS, "cuBLAS");
    require(cublasSetStream(cublas, stream) == CUBLAS_STATUS_SUCCESS, "cuBLAS");
  }
  engine(const engine&) = delete;
  engine& operator=(const engine&) = delete;
  ~engine() {
    cublasDestroy(cublas);
    cudaStreamDestroy(stream);
  }

  /// x: tokens × in, y: tokens × out, `between`: room for tokens × rank. Only queues work.
  void forward(const linear& layer, const buffer& x, const buffer& y, const buffer& between,
               index_t tokens) {
    if (layer.rank == 0) {
      multiply(layer.memory.data(), layer.out, layer.in, x.data(), y.data(), tokens);
    } else {
      multiply(layer.v(), layer.rank, layer.in, x.data(), between.data(), tokens);
      multiply(layer.u(), layer.out, layer.rank, between.data(), y.data(), tokens);
    }
  }

  cudaStream_t stream = nullptr;
  cublasHandle_t cublas = nullptr;

 private:
  /// y ← x·wᵀ, row-major; cuBLAS sees the transposes.
  void multiply(const bfloat16* w, index_t out, index_t in, const bfloat16* x, bfloat16* y,
                index_t tokens) {
    const float one = 1;
    const float zero = 0;
    require(cublasGemmEx_64(cublas, CUBLAS_OP_T, CUBLAS_OP_N, out, tokens, in, &one, w, CUDA_R_16BF,
                            in, x, CUDA_R_16BF, in, &zero, y, CUDA_R_16BF, out, CUBLAS_COMPUTE_32F,
                            CUBLAS_GEMM_DEFAULT) == CUBLAS_STATUS_SUCCESS,
            "cublasGemmEx_64");
  }
};

/// Activations as layers of language models have them: a few directions carry most of the energy.
std::vector<bfloat16> activations(index_t tokens, index_t features, std::mt19937_64& random) {
  std::normal_distribution<float> normal;
  std::vector<bfloat16> x(static_cast<std::size_t>(tokens * features));
  for (std::size_t i = 0; i < x.size(); ++i) {
    const auto feature = static_cast<float>(i % static_cast<std::size_t>(features));
    x[i] = bfloat16(normal(random) * 10 / (1 + feature / 8));
  }
  return x;
}

std::vector<bfloat16> weights(index_t out, index_t in, std::mt19937_64& random) {
  std::normal_distribution<float> normal(0, 1 / std::sqrt(static_cast<float>(in)));
  std::vector<bfloat16> w(static_cast<std::size_t>(out * in));
  for (bfloat16& element : w)
    element = bfloat16(normal(random));
  return w;
}

/// ‖a − b‖² / ‖b‖² of two outputs, computed on the device.
double relative_loss(ressvd::cuda_backend<float>& be, const buffer& a, const buffer& b,
                     index_t rows, index_t cols) {
  auto frame = be.frame();
  const auto difference = be.scratch(rows, cols);
  const auto reference = be.scratch(rows, cols);
  be.copy(ressvd::cuda_col_major<const bfloat16>(a.data(), rows, cols), difference);
  be.copy(ressvd::cuda_col_major<const bfloat16>(b.data(), rows, cols), reference);
  be.add(-1.0f, reference, difference);
  return be.dot(difference, difference) / be.dot(reference, reference);
}

void run() {
  constexpr index_t out = 1024;
  constexpr index_t in = 768;
  constexpr index_t tokens = 512;
  constexpr int batches = 8;

  std::mt19937_64 random(1);
  engine e;
  linear layer{out, in, buffer(weights(out, in, random))};
  const buffer y(tokens * out);
  const buffer between(tokens * in);

  // The library works on the engine's stream, with its handle, in the order of the calls.
  const auto context = ressvd::cuda_context::borrowing({.stream = e.stream, .cublas = e.cublas});
  ressvd::cuda_backend<float> be(context);

  // Forward passes. `deferred`: nobody looks at a batch before the sums are read, so add only
  // queues work, as the engine's own products do.
  ressvd::gram_accumulator gram(be, in,
                                {.name = "layer inputs", .check = ressvd::finite_check::deferred});
  std::deque<buffer> inputs;
  for (int i = 0; i < batches; ++i) {
    const buffer& x = inputs.emplace_back(activations(tokens, in, random));
    gram.add(ressvd::cuda_row_major(x.data(), tokens, in));
    e.forward(layer, x, y, between, tokens);
  }

  const buffer x(activations(tokens, in, random)); // not among the batches above
  e.forward(layer, x, y, between, tokens);

  // Factor, and put the factors where the weights were: r(m + n) ≤ mn elements.
  const auto w = ressvd::cuda_row_major<const bfloat16>(layer.memory.data(), out, in);
  ressvd::calibration input(be, std::move(gram));
  const auto result = input.compress(w, ressvd::methods::ressvd{}, ressvd::at_ratio(0.5));
  layer.rank = result.factors.rank();
  ressvd::export_to(be, result.factors, ressvd::cuda_row_major(layer.u(), out, layer.rank),
                    ressvd::cuda_row_major(layer.v(), layer.rank, in));

  // The same input through the two thin products.
  const buffer thin(tokens * out);
  e.forward(layer, x, thin, between, tokens);
  std::printf("%lld x %lld at rank %lld: %.0f %% of the parameters removed\n",
              static_cast<long long>(out), static_cast<long long>(in),
              static_cast<long long>(layer.rank), 100 * result.report.compression_ratio);
  std::printf("activation loss, predicted from the Gram %.4f, on new tokens %.4f\n",
              result.report.activation_loss->relative, relative_loss(be, thin, y, out, tokens));
}

} // namespace

int main() {
  if (ressvd::cuda_device_count() == 0) {
    std::fprintf(stderr, "no CUDA device\n");
    return 77; // what test runners read as skipped
  }
  try {
    run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return EXIT_FAILURE;
  }
}
