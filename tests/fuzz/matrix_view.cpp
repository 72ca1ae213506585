// SPDX-License-Identifier: Apache-2.0
//
// Any numbers as the sizes, strides, ranks and options of the library's entry points. The library
// refuses what is no matrix with std::invalid_argument; everything else is computed without reading
// or writing outside the memory that the views describe.
#include <cmath>
#include <stdexcept>
#include <utility>
#include <vector>

#include "fuzz.hpp"
#include "input.hpp"
#include "ressvd/compiled.hpp"

namespace {

using backend = ressvd::eigen_backend<float>;
using wide = ressvd::eigen_backend<double>;
using fuzz::any_view;
using fuzz::index_t;
using fuzz::input;
using metric = ressvd::metric<>;

// Sums of so many features are small, or more than any memory.
bool affordable(index_t features) {
  return features <= 64 || features >= index_t{1} << 40;
}

ressvd::token_order order_of(std::uint8_t choice) {
  return choice & 1 ? ressvd::token_order::tokens_by_features
                    : ressvd::token_order::features_by_tokens;
}

// A finished call got only views that describe matrices.
template <class... Views>
void require_valid(const Views&... views) {
  fuzz::require((views.valid() && ...));
}

template <class U>
void accumulate(input& in) {
  const std::uint8_t choice = in.byte();
  const any_view<U> x(in);
  const any_view<U> other(in);
  const index_t features = in.number();
  const index_t cross = choice & 2 ? in.number() : 0;
  if (!x.available() || !other.available() || !affordable(features) || !affordable(cross)) return;
  wide be;
  ressvd::gram_accumulator<wide> sums(be, features,
                                      {.channel_means = true, .cross_features = cross});
  if (cross > 0) {
    sums.add(x.view(), other.view(), order_of(choice));
    require_valid(x, other);
  } else {
    sums.add(x.view(), order_of(choice));
    require_valid(x);
  }
  if (sums.tokens() > 0) sums.mean_abs();
  ressvd::gram_accumulator<wide>::from_state(be, sums.state());
  ressvd::whiten(be, sums.gram(), {.ridge = in.real()});
}

void restore_state(input& in) {
  ressvd::gram_state state{.features = in.number(), .tokens = in.number()};
  state.cross_features = in.number();
  if (!affordable(state.features) || !affordable(state.cross_features)) return;
  state.gram.resize(in.byte());
  state.abs_sum.resize(in.byte() % 16);
  state.cross.resize(in.byte() % 160);
  wide be;
  auto sums = ressvd::gram_accumulator<wide>::from_state(be, state);
  fuzz::require(sums.state().gram == state.gram);
}

void stream_qr(input& in) {
  const std::uint8_t choice = in.byte();
  const any_view<float> x(in);
  const index_t features = in.number();
  if (!x.available() || !affordable(features)) return;
  wide be;
  ressvd::qr_accumulator<wide> rows(be, features);
  rows.add(x.view(), order_of(choice));
  require_valid(x);
  rows.add(x.view(), order_of(choice));
  ressvd::whiten(be, rows);
}

void whiten(input& in) {
  const any_view<double> g(in);
  if (!g.available()) return;
  backend be;
  if (in.byte() & 1) {
    ressvd::whiten(be, g.view(),
                   {.damping = in.real(), .max_damping = in.real(), .ridge = in.real()});
  } else {
    ressvd::whiten_power(be, g.view(), in.real());
  }
  require_valid(g);
}

metric metric_of(std::uint8_t kind, const any_view<double>& factor) {
  switch (kind % 4) {
    case 0:
      return metric::diagonal(factor.block());
    case 1:
      return metric::triangular(factor.block());
    case 2:
      return metric::dense(factor.block());
    default:
      return metric::identity();
  }
}

// A block is always column-major.
bool usable(const metric& m, const any_view<double>& factor) {
  return m.is_identity() ||
         (factor.available() && factor.view().order == ressvd::layout::col_major);
}

void factor(input& in) {
  const any_view<float> w(in);
  const any_view<float> other(in);
  const any_view<double> left_factor(in);
  const any_view<double> right_factor(in);
  const metric left = metric_of(in.byte(), left_factor);
  const metric right = metric_of(in.byte(), right_factor);
  const index_t largest_rank = in.number();
  const ressvd::svd_options options{.algorithm = static_cast<ressvd::svd_algorithm>(in.byte() % 5),
                                    .tolerance = in.real(),
                                    .seed = in.byte()};
  const index_t rank = in.number();
  if (!w.available() || !other.available() || !usable(left, left_factor) ||
      !usable(right, right_factor)) {
    return;
  }
  backend be;
  const auto basis = ressvd::truncated_svd(be, w.view(), left, right, largest_rank, options);
  require_valid(w);
  fuzz::require(left.is_identity() || left_factor.valid());
  fuzz::require(right.is_identity() || right_factor.valid());
  const ressvd::weight<backend> prepared(be, w.view());
  const auto nested = ressvd::slice(be, prepared, basis, largest_rank);
  const auto kind = basis.acts == ressvd::projection::left ? ressvd::nesting::projection
                                                           : ressvd::nesting::general;
  ressvd::truncation_losses(be, prepared, nested.u.ref(), nested.v.ref(), kind, right);
  const auto pair = ressvd::slice(be, other.view(), basis, rank);
  require_valid(other);
  fuzz::require(pair.rank() == rank);
  basis.truncation_loss(in.number());
}

// y = U(Vx) + b: the outputs are the caller's memory.
void run(input& in) {
  const any_view<float> u(in);
  const any_view<float> v(in);
  const any_view<float> x(in);
  const any_view<float> y(in);
  const any_view<float> bias(in);
  const bool biased = in.byte() & 1;
  if (!u.available() || !v.available() || !x.available() || !y.available() || !bias.available()) {
    return;
  }
  backend be;
  ressvd::apply(be, u.view(), v.view(), x.view(), y.view(),
                biased ? bias.view() : ressvd::matrix_view<float>{});
  require_valid(u, v, x, y);
}

void compress(input& in) {
  const any_view<float> w(in);
  const any_view<double> gram(in);
  const any_view<ressvd::half> out(in);
  const std::uint8_t choice = in.byte();
  const index_t number = in.number();
  const double real = in.real();
  const index_t multiple = in.number();
  const auto target = [&] {
    return choice & 1 ? ressvd::at_rank(number)
                      : ressvd::at_ratio(real, {.multiple = choice & 2 ? multiple : 1});
  };
  ressvd::methods::ressvd method{.beta = in.real()};
  if (choice & 8) method.residual_rank = in.number();
  if (choice & 16) method.intermediate_rank = in.number();
  method.whitened_residual = choice & 32;
  const index_t other = in.number();
  if (!w.available() || !gram.available() || !out.available()) return;
  backend be;
  ressvd::calibration<backend> input(be, ressvd::whiten(be, gram.view()));
  require_valid(gram);
  const auto result = input.compress(w.view(), method, target());
  require_valid(w);
  if (result.dense()) return;
  const auto factored = input.factor(w.view(), method, {result.report.choice.rank});
  const auto weight = std::make_shared<const ressvd::weight<backend>>(be, w.view());
  ressvd::factored_matrix<backend>::from_state(be, weight, factored.state())
      .at(ressvd::at_rank(other));
  ressvd::materialise(be, result.factors, out.view());
  require_valid(out);
}

// Losses of a pair, and fits of its factors, with matrices of any other size.
void refit(input& in) {
  const any_view<float> w(in);
  const any_view<double> gram(in);
  const any_view<double> cross(in);
  const std::uint8_t choice = in.byte();
  const auto rows = static_cast<index_t>(1 + in.byte() % 12);
  const auto cols = static_cast<index_t>(1 + in.byte() % 12);
  const index_t rank = 1 + in.byte() % (std::min)(rows, cols);
  const double ridge = in.real();
  if (!w.available() || !gram.available() || !cross.available() ||
      gram.view().order != ressvd::layout::col_major ||
      cross.view().order != ressvd::layout::col_major) {
    return;
  }
  backend be;
  ressvd::low_rank<float> pair{be.allocate(rows, rank), be.allocate(rank, cols)};
  be.random_normal(pair.u.ref(), choice);
  be.random_normal(pair.v.ref(), choice + 1u);
  const auto second = choice & 8 ? cross.block() : ressvd::block<double>{};
  switch (choice % 5) {
    case 0:
      ressvd::weight_loss(be, w.view(), pair);
      break;
    case 1:
      ressvd::activation_loss(be, w.view(), pair, gram.view());
      require_valid(gram);
      break;
    case 2:
      ressvd::update_left(be, w.view(), pair, gram.block(), second);
      require_valid(gram);
      break;
    case 3:
      ressvd::update_right(be, w.view(), pair);
      break;
    default:
      ressvd::shifted_weights(be, w.view(), gram.block(), second, ridge);
      require_valid(gram);
  }
  require_valid(w);
}

// Ranks and ratios of any shapes.
void choose_rank(input& in) {
  const index_t rows = in.number();
  const index_t cols = in.number();
  const auto choice = ressvd::rank_for_ratio(
      rows, cols, in.real(),
      {.multiple = in.number(), .towards = static_cast<ressvd::rounding>(in.byte() % 3)});
  fuzz::require(choice.rank >= 1 && choice.rank <= (std::min)(rows, cols));
  fuzz::require(ressvd::achieved_ratio(rows, cols, choice) >= 0);
  std::vector<index_t> layers(in.byte() % 8);
  for (index_t& parameters : layers)
    parameters = in.number();
  const double ratio = in.real();
  ressvd::last_layer_candidates(layers, ratio, {.step = in.number()});
  ressvd::layer_ratio(layers, ratio, in.number());
}

void call(input& in) {
  switch (in.byte() % 10) {
    case 0:
      return accumulate<float>(in);
    case 1:
      return accumulate<ressvd::bfloat16>(in);
    case 2:
      return restore_state(in);
    case 3:
      return stream_qr(in);
    case 4:
      return whiten(in);
    case 5:
      return factor(in);
    case 6:
      return run(in);
    case 7:
      return compress(in);
    case 8:
      return refit(in);
    default:
      return choose_rank(in);
  }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  input in(data, size);
  try {
    call(in);
  } catch (const std::invalid_argument& error) {
    fuzz::require_message(error);
  } catch (const ressvd::workspace_error& error) {
    fuzz::require_message(error); // sums of more features than memory holds
  }
  return 0;
}

// Allocations that cannot be served fail as they would without AddressSanitizer.
extern "C" const char* __asan_default_options() {
  return "allocator_may_return_null=1";
}
