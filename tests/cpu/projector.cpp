// SPDX-License-Identifier: Apache-2.0
//
// The spectral projector on a CPU backend whose reduced products round as tensor cores do.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "ressvd/compiled.hpp"
#include "ressvd/truncated_svd/spectral_density.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/host_memory.hpp"
#include "support/problem.hpp"

namespace {

using namespace support;
using ressvd::block;
using ressvd::op;
using ressvd::svd_algorithm;

template <ressvd::compute_scalar T>
class rounding_backend : public ressvd::eigen_backend<T> {
  using base = ressvd::eigen_backend<T>;

 public:
  template <ressvd::compute_scalar U>
  using rebind = rounding_backend<U>;

  rounding_backend() = default;
  template <ressvd::compute_scalar U>
  rounding_backend(const rounding_backend<U>& other) : base(other.context()) {}

  void reduced_gemm(op oa, op ob, T alpha, block<const T> a, block<const T> b, T beta,
                    block<T> c) requires std::is_same_v<T, float> {
    auto frame = this->frame();
    this->gemm(oa, ob, alpha, rounded(a), rounded(b), beta, c);
  }

 private:
  /// Fraction bits beyond the tenth are dropped, to the nearest.
  block<T> rounded(block<const T> a) {
    const auto out = this->scratch(a.rows, a.cols);
    for (index_t j = 0; j < a.cols; ++j) {
      for (index_t i = 0; i < a.rows; ++i) {
        const auto bits = std::bit_cast<std::uint32_t>(a.data[i + j * a.ld]);
        out.data[i + j * out.ld] = std::bit_cast<float>((bits + 0x1000u) & 0xffffe000u);
      }
    }
    return out;
  }
};

using backend_under_test = rounding_backend<float>;

/// Spectra of layers, without and with outliers; flat ones; of a matrix of noise.
std::vector<double> layer_spectrum(index_t count, bool outliers) {
  std::vector<double> sigma;
  for (index_t i = 0; i < count; ++i) {
    const double x = static_cast<double>(i);
    sigma.push_back(3 * std::pow(x + 1, -0.35) * (1 - 0.9 * x / static_cast<double>(count)));
  }
  if (outliers) {
    sigma[0] = 3000;
    sigma[1] = 200;
    sigma[2] = 40;
  }
  return sigma;
}

std::vector<double> flat_spectrum(index_t count) {
  std::vector<double> sigma;
  for (index_t i = 0; i < count; ++i)
    sigma.push_back(1.5 - static_cast<double>(i) / static_cast<double>(count));
  return sigma;
}

} // namespace

TEST_CASE("the projector finds leading subspaces to its tolerance", "[truncated_svd]") {
  backend_under_test be;
  const index_t count = 300;
  for (const auto& sigma :
       {layer_spectrum(count, false), layer_spectrum(count, true), flat_spectrum(count)}) {
    for (const auto& [m, n] : {std::pair<index_t, index_t>{300, 300}, {300, 410}, {410, 300}}) {
      const problem<backend_under_test> p(be, with_spectrum(m, n, sigma, 3), dense(n, 1));
      for (const index_t rank : {30, 90, 120, 200}) {
        INFO("largest " << sigma[0] << ", " << m << " x " << n << ", rank " << rank);
        const auto basis = ressvd::truncated_svd(be, p.placed_w.view(), {}, {}, rank,
                                                 {.algorithm = svd_algorithm::projector});
        CHECK(basis.report.algorithm == svd_algorithm::projector);
        CHECK(basis.report.excess_loss <= 1e-3);
        const dense q = values_of(be, basis.q);
        CHECK(orthonormality_error(q) <= householder_tolerance(m, rank, eps<backend_under_test>));
        const double optimum = sum_of_squares_from(sigma, rank);
        const double rounding = 10 * eps<backend_under_test> * squared_norm(p.w);
        CHECK(squared_norm(p.w - q * (transpose(q) * p.w)) <= 1.001 * optimum + rounding);
        CHECK(basis.truncation_loss(rank) == Approx(optimum).epsilon(2e-3).margin(rounding));
        CHECK(basis.singular_values[0] == Approx(sigma[0]).epsilon(1e-4));
      }
    }
  }
}

TEST_CASE("the projector gives way where it cannot serve", "[truncated_svd]") {
  backend_under_test be;
  const auto algorithm_for = [&](const dense& w, index_t rank, double tolerance = 1e-3) {
    const problem<backend_under_test> p(be, w, dense(w.cols(), 1));
    const auto basis =
        ressvd::truncated_svd(be, p.placed_w.view(), {}, {}, rank,
                              {.algorithm = svd_algorithm::projector, .tolerance = tolerance});
    CHECK(basis.rank() == rank);
    return basis.report.algorithm;
  };
  const dense w = with_spectrum(100, 120, flat_spectrum(100), 4);
  CHECK(algorithm_for(w, 60) == svd_algorithm::projector);
  CHECK(algorithm_for(w, 93) == svd_algorithm::gram);       // a block of 101 columns
  CHECK(algorithm_for(w, 60, 1e-9) == svd_algorithm::gram); // beyond float
  CHECK(algorithm_for(dense(40, 50), 10) == svd_algorithm::gram);
  CHECK(algorithm_for(with_spectrum(60, 80, flat_spectrum(12), 5), 30) == svd_algorithm::gram);
}

TEST_CASE("a density counts eigenvalues", "[truncated_svd]") {
  backend_under_test be;
  const index_t count = 400;
  for (const auto& sigma : {layer_spectrum(count, false), flat_spectrum(count)}) {
    const dense w = with_spectrum(count, count, sigma, 6);
    const placed<float, backend_under_test> h(be, transpose(w) * w);
    const double largest = sigma[0] * sigma[0];
    const ressvd::detail::spectral_density density(be, ressvd::block<const float>(h.block()),
                                                   1.02 * largest, 1);
    CHECK(density.is_bounded());
    CHECK(density.count_above(0) == Approx(count).epsilon(1e-6));
    CHECK(density.count_above(1.02 * largest) == Approx(0).margin(1e-6));
    double before = count;
    for (const double share : {0.02, 0.05, 0.1, 0.3, 0.6, 0.9}) {
      const double cut = share * largest;
      const auto above =
          static_cast<double>(std::ranges::count_if(sigma, [&](double s) { return s * s > cut; }));
      const double counted = density.count_above(cut);
      INFO("share " << share << ", " << counted << " for " << above);
      // Four standard deviations of 64 vectors, and what the step blurs.
      CHECK(std::abs(counted - above) <= 4 * std::sqrt(2 * above / 64) + 0.02 * count);
      CHECK(counted <= before);
      before = counted;
      CHECK(density.count_above(density.cut_for(above)) == Approx(above).epsilon(1e-6));
    }
    const ressvd::detail::spectral_density narrow(be, ressvd::block<const float>(h.block()),
                                                  0.5 * largest, 1);
    CHECK_FALSE(narrow.is_bounded());
  }
}
