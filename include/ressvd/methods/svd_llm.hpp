// SPDX-License-Identifier: Apache-2.0
//
// SVD-LLM: min ‖(W − Ŵ)X‖_F by whitening with a factor of G = XXᵀ. Needs the Gram. The update of U
// for the inputs that the compressed prefix produces is shifted_input::update.
//   source   SVD-LLM, arXiv 2403.07378, Algorithms 1 and 2
#pragma once

#include <string_view>

#include "ressvd/methods/support.hpp"

namespace ressvd {
inline namespace v0 {
namespace methods {

struct svd_llm {
  svd_options options = {};

  static constexpr std::string_view name = "svd-llm";
  template <backend B>
  void prepare(calibration<B>& input) const {
    input.whitening("SVD-LLM");
  }
  template <backend B>
  svd_basis<B> basis(B& be, const weight<B>& w, calibration<B>& input, index_t rank) const {
    return truncated_svd(be, w, {}, input.whitening("SVD-LLM").metric(), rank, options);
  }
};

} // namespace methods
} // namespace v0
} // namespace ressvd
