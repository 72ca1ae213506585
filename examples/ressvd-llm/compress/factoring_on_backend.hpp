// SPDX-License-Identifier: Apache-2.0
//
// The factoring engine on a backend of the library: uploads what the library's layer-level API
// takes, names it for messages, and brings the answers to the host.
#pragma once

#include <array>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <ressvd/algorithms.hpp>

#include "compress/factoring.hpp"

namespace ressvd_llm {

template <ressvd::backend B>
class factoring_on_backend final : public factoring_engine {
 public:
  // `fisher`: mean squared gradients of the matrices, under their names; may be empty.
  factoring_on_backend(B be, const std::filesystem::path& fisher) : be_(std::move(be)) {
    if (!fisher.empty()) fisher_ = checkpoint::open_file(fisher);
  }

  std::unique_ptr<layer_factoring> begin_layer(const model_config& config, std::int64_t layer,
                                               const ressvd::any_method& method) override {
    return std::make_unique<layer_session>(*this, config, layer, method);
  }

  linear slice(const factored_module& m, const linear& original,
               const ressvd::rank_choice& choice) override {
    return linear_of(restored(m, original).at(choice), original);
  }

  std::unique_ptr<shifted_refit> begin_refit(std::int64_t features,
                                             const ressvd::any_method& method,
                                             const ressvd::shifted_options& options) override {
    return std::make_unique<refit_session>(*this, features, method, options);
  }

  fallback_report fallbacks() const override {
    if constexpr (requires { be_.context()->report.fallbacks; }) {
      const auto& report = be_.context()->report;
      return {.count = report.fallbacks, .last = report.last_fallback};
    } else {
      return {};
    }
  }

 private:
  using space = typename B::space;
  using accumulator = ressvd::gram_accumulator<B>;

  class layer_session final : public layer_factoring {
   public:
    layer_session(factoring_on_backend& engine, const model_config& config, std::int64_t layer,
                  const ressvd::any_method& method)
        : engine_(engine),
          modules_(linear_modules(config, layer)),
          name_("layer " + std::to_string(layer) + ", input of "),
          method_(method) {}

    void observe(input_group group, const float* x, std::int64_t tokens,
                 std::int64_t features) override {
      auto& sums = sums_[static_cast<std::size_t>(group)];
      if (!sums) {
        sums.emplace(engine_.be_, features,
                     ressvd::gram_options{.name = name_ + std::string(name_of(group)),
                                          .channel_means = true});
      }
      sums->add(engine_.uploaded(x, tokens, features).view().transposed());
    }

    void take(input_group group, const ressvd::gram_state& state) override {
      sums_[static_cast<std::size_t>(group)] = accumulator::from_state(
          engine_.be_, state, {.name = name_ + std::string(name_of(group))});
    }

    std::vector<factored_module> factor(const layer_weights& weights,
                                        const std::vector<rank_list>& wanted) override {
      std::vector<factored_module> result;
      std::optional<ressvd::calibration<B>> input;
      for (std::size_t i = 0; i < modules_.size(); ++i) {
        const linear_module& module = modules_[i];
        if (i > 0 && module.group != modules_[i - 1].group) input.reset();
        result.push_back({module, {}});
        if (wanted[i].empty()) continue;
        if (!input) {
          input.emplace(engine_.be_,
                        std::move(sums_[static_cast<std::size_t>(module.group)].value()));
        }
        const auto importance = engine_.row_importance(module);
        auto w = engine_.weight_of(weights[module.kind]);
        w.row_importance = importance.ref();
        result.back().state = input->factor(std::move(w), method_, wanted[i]).state();
      }
      return result;
    }

   private:
    factoring_on_backend& engine_;
    std::vector<linear_module> modules_;
    std::string name_;
    ressvd::any_method method_;
    std::array<std::optional<accumulator>, input_group_count> sums_;
  };

  class refit_session final : public shifted_refit {
   public:
    refit_session(factoring_on_backend& engine, std::int64_t features,
                  const ressvd::any_method& method, const ressvd::shifted_options& options)
        : engine_(engine),
          features_(features),
          method_(method),
          input_(engine.be_, features, options) {}

    void observe(const float* x, const float* original, std::int64_t tokens) override {
      const auto shifted = engine_.uploaded(x, tokens, features_);
      if (original == nullptr) {
        input_.observe(shifted.view().transposed());
      } else {
        const auto y = engine_.uploaded(original, tokens, features_);
        input_.observe(shifted.view().transposed(), y.view().transposed());
      }
    }

    linear update(const factored_module& m, const linear& original,
                  const ressvd::rank_choice& choice) override {
      return engine_.linear_of(input_.update(engine_.restored(m, original), method_, choice),
                               original);
    }

    linear truncate(const linear& original, const ressvd::rank_choice& choice) override {
      return engine_.linear_of(input_.truncate(engine_.weight_of(original), method_, choice),
                               original);
    }

   private:
    factoring_on_backend& engine_;
    std::int64_t features_;
    ressvd::any_method method_;
    ressvd::shifted_input<B> input_;
  };

  // Row-major rows × cols values, held transposed and column-major.
  ressvd::matrix<float, space> uploaded(const float* values, std::int64_t rows, std::int64_t cols) {
    auto held = be_.allocate(cols, rows);
    be_.upload({values, cols, rows, cols}, held);
    return held;
  }

  ressvd::weight<B> weight_of(const linear& l) {
    const auto values = l.dense.values();
    return {be_, uploaded(values.data(), l.out(), l.in()).view().transposed()};
  }

  ressvd::factored_matrix<B> restored(const factored_module& m, const linear& original) {
    auto w = std::make_shared<const ressvd::weight<B>>(weight_of(original));
    return ressvd::factored_matrix<B>::from_state(be_, std::move(w), m.state);
  }

  ressvd::matrix<double, space> row_importance(const linear_module& module) {
    if (!fisher_) return {};
    const auto f = read_f32(*fisher_, module.weight_name(), {module.out, module.in});
    const auto held = uploaded(f.data(), module.out, module.in);
    return ressvd::methods::fisher_row_importance(be_, held.view().transposed());
  }

  // The factors as the linear layer that takes the place of `original`.
  linear linear_of(const ressvd::compressed_matrix<B>& compressed, const linear& original) {
    const auto& f = compressed.factors;
    return make_linear(weight_matrix(f.rows(), f.rank(), row_major(f.u)),
                       weight_matrix(f.rank(), f.cols(), row_major(f.v)), original.bias);
  }

  std::vector<float> row_major(const ressvd::matrix<float, space>& a) {
    auto frame = be_.frame();
    const auto transposed = be_.scratch(a.cols(), a.rows());
    be_.copy(a.view().transposed(), transposed);
    std::vector<float> host(static_cast<std::size_t>(a.size()));
    be_.download(transposed, {host.data(), a.cols(), a.rows(), a.cols()});
    return host;
  }

  B be_;
  std::optional<checkpoint> fisher_;
};

} // namespace ressvd_llm
