// SPDX-License-Identifier: Apache-2.0
//
// The GPU against the CPU: the same data through both backends.
#include <cmath>
#include <type_traits>
#include <utility>

#include "ressvd/compiled.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/cuda_backends.hpp"
#include "support/dense.hpp"
#include "support/host_memory.hpp"
#include "support/placed.hpp"

namespace {

using namespace support;

template <class GPU>
using cpu_for = ressvd::eigen_backend<typename GPU::scalar>;

constexpr index_t rows = 96;
constexpr index_t cols = 120;
constexpr index_t tokens = 400;
constexpr index_t rank = 30;

struct outcome {
  dense gram, projector;
  ressvd::method_report svd_llm, ressvd;
};

/// From bfloat16 activations and weights to compressed factors, on one backend.
template <class B>
outcome compress(const dense& weights, const dense& x) {
  auto be = make_backend<B>();
  ressvd::wide_backend<B> wide(be);
  placed<ressvd::bfloat16, B> w(be, weights, ressvd::layout::row_major);
  placed<ressvd::bfloat16, B> batch(be, transpose(x), ressvd::layout::row_major);
  ressvd::gram_accumulator gram(wide, cols);
  gram.add(batch.view());
  outcome result;
  result.gram = values_of(wide, gram.gram());
  ressvd::calibration<B> input(be, std::move(gram));
  const auto target = ressvd::at_rank(rank);
  const auto direct = input.compress(w.view(), ressvd::methods::svd_llm{}, target);
  const dense q = values_of(be, direct.factors.u);
  result.projector = q * transpose(q);
  result.svd_llm = direct.report;
  result.ressvd = input.compress(w.view(), ressvd::methods::ressvd{}, target).report;
  return result;
}

void check_losses(const ressvd::method_report& a, const ressvd::method_report& b,
                  double tolerance) {
  CHECK_THAT(a.weight_loss.relative, WithinAbs(b.weight_loss.relative, tolerance));
  CHECK_THAT(a.activation_loss->relative, WithinAbs(b.activation_loss->relative, tolerance));
}

} // namespace

TEMPLATE_LIST_TEST_CASE("Grams, losses and subspaces agree with the CPU's", "[cuda]",
                        test_backends) {
  // A gap of more than a half behind the rank under any metric of condition 10 (√10 for its
  // factor), so that the subspace is well defined.
  std::vector<double> spectrum = geometric_spectrum(rows, 10);
  for (std::size_t i = 0; i < rank; ++i)
    spectrum[i] = 10 + static_cast<double>(i % 5);
  const dense w = with_spectrum(rows, cols, spectrum, 1);
  const dense x = activations(cols, tokens, 2);
  const outcome gpu = compress<TestType>(w, x);
  const outcome cpu = compress<cpu_for<TestType>>(w, x);

  // Both sum the same exact products in float, in some order, then in double.
  const dense xs = absolute(rounded<ressvd::bfloat16>(x));
  CHECK(error_in_bounds(gpu.gram, cpu.gram, 2 * tokens * 0x1p-23 * (xs * transpose(xs))) <= 1);
  // The Grams differ by float's rounding, 2^-23·√tokens relative at most, and so do the losses;
  // subspaces by that over the relative gap (Davis and Kahan), with a margin of ten.
  CHECK(distance(gpu.projector, cpu.projector) < 1e-4);
  check_losses(gpu.svd_llm, cpu.svd_llm, 1e-5);
  check_losses(gpu.ressvd, cpu.ressvd, 1e-5);
  CHECK(gpu.ressvd.intermediate_rank == cpu.ressvd.intermediate_rank);
}

TEMPLATE_LIST_TEST_CASE("a seed means the numbers it means on the CPU", "[cuda]", test_backends) {
  auto gpu = make_backend<TestType>();
  auto cpu = make_backend<cpu_for<TestType>>();
  for (const auto& [m, n] : {std::pair<index_t, index_t>{1, 1}, {7, 5}, {130, 33}}) {
    auto a = gpu.allocate(m, n);
    auto b = cpu.allocate(m, n);
    gpu.random_normal(a, 1234);
    cpu.random_normal(b, 1234);
    // Logarithm and cosine are good to a few units in the last place on either side; the argument
    // 2πu of the CPU's cosine is rounded, which is worth 2π·eps of the radius.
    CHECK(distance(values_of(gpu, a), values_of(cpu, b)) <=
          16 * eps<TestType> * (1 + frobenius(values_of(cpu, b))));
  }
}
