// SPDX-License-Identifier: Apache-2.0
//
// A method chosen at run time, as by an option of a program: it is itself a method, and does what
// the one it holds does. method_named makes one from the name that papers and programs use.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "ressvd/methods/adasvd.hpp"
#include "ressvd/methods/asvd.hpp"
#include "ressvd/methods/fwsvd.hpp"
#include "ressvd/methods/kfac_svd.hpp"
#include "ressvd/methods/ressvd.hpp"
#include "ressvd/methods/svd.hpp"
#include "ressvd/methods/svd_llm.hpp"
#include "ressvd/methods/tempered.hpp"

namespace ressvd {
inline namespace v0 {

struct any_method {
  using variant =
      std::variant<methods::svd, methods::fwsvd, methods::asvd, methods::svd_llm, methods::adasvd,
                   methods::ressvd, methods::tempered, methods::kfac_svd>;
  variant chosen = methods::ressvd{};

  std::string_view name() const {
    return std::visit([](const auto& method) { return method.name; }, chosen);
  }
  /// The options of the truncated SVD, whichever method it is.
  svd_options& options() {
    return std::visit([](auto& method) -> svd_options& { return method.options; }, chosen);
  }

  template <backend B>
  void prepare(calibration<B>& input) const {
    std::visit([&](const auto& method) { input.prepare(method); }, chosen);
  }
  template <backend B>
  svd_basis<B> basis(B& be, const weight<B>& w, calibration<B>& input, index_t rank) const {
    return std::visit([&](const auto& method) { return method.basis(be, w, input, rank); }, chosen);
  }
  std::optional<residual_plan> residual() const {
    return std::visit([](const auto& method) { return detail::residual_of(method); }, chosen);
  }
  template <backend B>
  std::shared_ptr<const whitening<B>> residual_metric(B& be, const weight<B>& w) const {
    return std::visit([&](const auto& method) { return detail::residual_metric_of(be, w, method); },
                      chosen);
  }
  update_options update() const {
    return std::visit([](const auto& method) { return detail::update_of(method); }, chosen);
  }
};

namespace detail {

template <class... M>
any_method method_named(std::string_view name, std::variant<M...>*) {
  any_method result;
  const bool known = ((M::name == name && (result.chosen = M{}, true)) || ...);
  if (!known) {
    std::string names;
    ((names += (names.empty() ? "" : ", ") + std::string(M::name)), ...);
    fail("there is no method '", name, "': the methods are ", names);
  }
  return result;
}

} // namespace detail

/// The method of this name (svd, fwsvd, asvd, svd-llm, adasvd, ressvd, tempered, kfac-svd) with its
/// default options. Throws std::invalid_argument for another one.
inline any_method method_named(std::string_view name) {
  return detail::method_named(name, static_cast<any_method::variant*>(nullptr));
}

} // namespace v0
} // namespace ressvd
