// SPDX-License-Identifier: Apache-2.0
//
// The triangular factor of the activations by streaming QR: R with RᵀR = X·Xᵀ, X the features ×
// tokens activations seen so far. It never forms the Gram, so it keeps the small singular values of
// X that squaring loses (they may be 1e-16 of the largest instead of 1e-8). S = Rᵀ whitens like the
// Cholesky factor.
//
//   update      [R; batchᵀ] = Q·R' by Householder, R' the new factor; tokens are buffered until
//               there are as many as features, so a long stream costs about 10/3·n² flops a token
//   memory      8n² for R and 8n² for the buffer (n features, double)
//   workspace   16n² to reduce both
//   blocks      add waits for its finiteness check
//   source      COALA, arXiv 2507.07580
#pragma once

#include <algorithm>
#include <string>
#include <utility>

#include "ressvd/core/backend.hpp"
#include "ressvd/detail/finite.hpp"
#include "ressvd/whitening/gram.hpp"

namespace ressvd {
inline namespace v0 {

template <backend B>
class qr_accumulator {
 public:
  using scalar = typename B::scalar;
  using space = typename B::space;

  /// Throws std::invalid_argument unless features ≥ 1. `name` is used in error messages.
  qr_accumulator(B be, index_t features, std::string name = "activations")
      : be_(std::move(be)), name_(std::move(name)) {
    detail::require(features >= 1, "a QR factor of ", features, " features was asked for");
    stack_ = be_.allocate(detail::element_count<scalar>(2, features), features);
    be_.fill(stack_, scalar{0});
  }

  /// Takes in a batch; shapes, layouts and errors as in gram_accumulator::add.
  template <readable_matrix<space> X>
  void add(const X& batch, token_order order = token_order::tokens_by_features) {
    const auto given = const_view(batch);
    detail::check_view(given, name_.c_str());
    const auto x = order == token_order::tokens_by_features ? given : given.transposed();
    detail::require(x.cols == features(), name_, " has ", x.cols, " features, expected ",
                    features());
    detail::require_finite(be_, given, name_.c_str());
    for (index_t t = 0; t < x.rows;) {
      const index_t count = (std::min)(x.rows - t, features() - buffered_);
      be_.copy(x.part(t, 0, count, x.cols),
               stack_.ref().part(features() + buffered_, 0, count, features()));
      buffered_ += count;
      t += count;
      if (buffered_ == features()) reduce();
    }
    tokens_ += x.rows;
  }

  /// Takes in what another accumulator has seen: its factor is n more rows to reduce.
  void merge(qr_accumulator& other) {
    detail::require(other.features() == features(), "cannot merge a QR factor of ",
                    other.features(), " features into one of ", features());
    reduce();
    be_.copy(other.factor(), stack_.ref().part(features(), 0, features(), features()));
    buffered_ = features();
    reduce();
    tokens_ += other.tokens_;
  }

  index_t features() const { return stack_.cols(); }
  index_t tokens() const { return tokens_; }
  const std::string& name() const { return name_; }

  /// R, upper triangular with zeros below the diagonal. Valid until the next add or merge.
  block<const scalar, space> factor() {
    reduce();
    return stack_.ref().top_rows(features());
  }

 private:
  /// R on top, buffered rows below → the new R.
  void reduce() {
    if (buffered_ == 0) return;
    auto frame = be_.frame();
    const auto rows = be_.scratch(features() + buffered_, features());
    be_.copy(stack_.ref().top_rows(rows.rows), rows);
    be_.triangularize(rows, stack_.ref().top_rows(features()));
    buffered_ = 0;
  }

  B be_;
  std::string name_;
  matrix<scalar, space> stack_; // 2n × n: R and the buffer below it
  index_t buffered_ = 0;
  index_t tokens_ = 0;
};

} // namespace v0
} // namespace ressvd
