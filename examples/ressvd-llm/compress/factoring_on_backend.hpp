// SPDX-License-Identifier: Apache-2.0
//
// The factoring engine on a backend of the library: uploads what the library's layer-level API
// takes, names it for messages, and brings the answers to the host.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include <ressvd/algorithms.hpp>

#include "compress/factoring.hpp"
#include "model/parallel.hpp"

namespace ressvd_llm {

template <ressvd::backend B>
class factoring_on_backend final : public factoring_engine {
 public:
  factoring_on_backend(B be, const compress_options& options)
      : be_(std::move(be)), options_(options) {
    if (!options.fisher.empty()) fisher_ = checkpoint::open_file(options.fisher);
  }

  std::unique_ptr<layer_factoring> begin_layer(const model_config& config, std::int64_t layer,
                                               const ressvd::any_method& method) override {
    return std::make_unique<layer_session>(*this, config, layer, method);
  }

  std::unique_ptr<output_curvature> begin_curvature(std::int64_t layer) override {
    return std::make_unique<curvature_session>(*this, layer);
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

    void observe(const layer_input& input, const activation_view& x) override {
      auto& sums = sums_[input.index()];
      const bool here = x.space != memory_space::host;
      if (!sums) {
        // A pass on the device goes on without waiting; the sums tell what was not finite.
        sums.emplace(engine_.be_, x.cols,
                     ressvd::gram_options{.name = name_ + name_of(input),
                                          .channel_means = true,
                                          .check = here ? ressvd::finite_check::deferred
                                                        : ressvd::finite_check::immediate});
      }
      if (here) {
        add_on_device(*sums, x);
      } else {
        sums->add(uploaded(engine_.be_, x.host(), x.rows, x.cols).view().transposed());
      }
    }

    void take(const layer_input& input, const ressvd::gram_state& state) override {
      if (state.tokens == 0) return;
      sums_[input.index()] =
          accumulator::from_state(engine_.be_, state, {.name = name_ + name_of(input)});
    }

    void take(std::vector<matrix_curvature> curvature) override {
      curvature_ = std::move(curvature);
    }

    std::vector<factored_module> factor(const layer_weights& weights,
                                        const std::vector<rank_list>& wanted) override {
      std::vector<factored_module> result;
      std::int64_t most_tokens = 1;
      for (const linear_module& module : modules_) {
        result.push_back({module, {}});
        const auto& sums = sums_[module.input.index()];
        if (sums) most_tokens = (std::max)(most_tokens, std::int64_t{sums->tokens()});
      }
      for (std::size_t first = 0; first < modules_.size();) {
        std::vector<std::size_t> readers; // of the same input
        std::size_t last = first;
        for (; last < modules_.size() && modules_[last].input == modules_[first].input; ++last)
          if (!wanted[last].empty()) readers.push_back(last);
        if (!readers.empty()) {
          auto& sums = sums_[modules_[first].input.index()];
          if (!sums && modules_[first].place.expert != no_expert)
            take(modules_[first].input, nothing_seen(modules_[first].in, most_tokens));
          const std::int64_t tokens = sums.value().tokens();
          ressvd::calibration<B> input(engine_.be_, std::move(sums.value()));
          sums.reset();
          input.prepare(method_);
          engine_.for_each_small(modules_, readers, [&](B& be, std::size_t i) {
            const linear_module& module = modules_[i];
            const matrix_curvature* known = curvature_.empty() ? nullptr : &curvature_[i];
            const gradient_statistics gradients(engine_, be, module, known);
            const auto w = std::make_shared<const ressvd::weight<B>>(
                gradients.attached_to(weight_of(be, weights[module.place])));
            ressvd::calibration<B> mine(be, input);
            result[i].state = mine.factor(w, method_, wanted[i]).state();
            if (known == nullptr) return;
            result[i].curvature_spectrum = spectrum(be, *w, mine, result[i].state.singular_values);
            // ½·tr(H·ΔW·G·ΔWᵀ), H and G sums over tokens of their own.
            const double unit = 1 / std::sqrt(2.0 * static_cast<double>(tokens) *
                                              static_cast<double>(known->outputs.tokens));
            for (double& value : result[i].curvature_spectrum)
              value *= unit;
          });
        }
        first = last;
      }
      return result;
    }

   private:
    // Of an expert that none of so many tokens went to.
    static ressvd::gram_state nothing_seen(std::int64_t features, std::int64_t tokens) {
      const auto n = static_cast<std::size_t>(features);
      return {.features = features,
              .tokens = tokens,
              .gram = std::vector<double>(n * n),
              .abs_sum = std::vector<double>(n)};
    }

    static void add_on_device(accumulator& sums, const activation_view& x) {
      const auto add = [&]<class U>(const U* data) {
        sums.add(ressvd::matrix_view<const U, space>{data, x.rows, x.cols, x.cols});
      };
      if constexpr (!std::is_same_v<space, ressvd::host_space>) {
        switch (x.type) {
          case dtype::f16:
            return add(static_cast<const ressvd::half*>(x.data));
          case dtype::bf16:
            return add(static_cast<const ressvd::bfloat16*>(x.data));
          default:
            return add(static_cast<const float*>(x.data));
        }
      }
      throw std::logic_error("activations on a card for a backend on the host");
    }

    // Powers and other methods serve the factors, not the loss.
    std::vector<double> spectrum(B& be, const ressvd::weight<B>& w, ressvd::calibration<B>& input,
                                 const std::vector<double>& of_method) const {
      const auto* kfac = std::get_if<ressvd::methods::kfac_svd>(&method_.chosen);
      if (kfac != nullptr && kfac->input_power == 1 && kfac->output_power == 1) return of_method;
      return ressvd::curvature_spectrum(be, w, input, {.ridge = engine_.options_.curvature_ridge});
    }

    factoring_on_backend& engine_;
    std::vector<linear_module> modules_;
    std::string name_;
    ressvd::any_method method_;
    std::map<std::size_t, std::optional<accumulator>> sums_; // by layer_input::index
    std::vector<matrix_curvature> curvature_;
  };

  // What gradients say of one matrix, in the backend's memory.
  class gradient_statistics {
   public:
    gradient_statistics(const factoring_on_backend& engine, B& be, const linear_module& module,
                        const matrix_curvature* known)
        : importance_(engine.row_importance(be, module)) {
      if (known == nullptr) return;
      ressvd::wide_backend<B> be64(be);
      const auto n = static_cast<ressvd::index_t>(known->outputs.features);
      curvature_ = be64.allocate(n, n);
      be64.upload({known->outputs.gram.data(), n, n, n}, curvature_.ref());
      if (!importance_.empty()) return;
      importance_ = be64.allocate(n, 1);
      // Rows of which nothing is known count alike.
      const bool known_rows =
          std::ranges::any_of(known->row_importance, [](double row) { return row > 0; });
      const std::vector<double> alike(known->row_importance.size(), 1.0);
      be64.upload({(known_rows ? known->row_importance : alike).data(), n, 1, n},
                  importance_.ref());
    }

    // This object must outlive the result.
    ressvd::weight<B> attached_to(ressvd::weight<B> w) const {
      w.row_importance = importance_.ref();
      w.output_curvature = curvature_.ref();
      return w;
    }

   private:
    ressvd::matrix<double, space> importance_;
    ressvd::matrix<double, space> curvature_;
  };

  class curvature_session final : public output_curvature {
   public:
    curvature_session(factoring_on_backend& engine, std::int64_t layer)
        : engine_(engine),
          name_("layer " + std::to_string(layer) + ", gradient at the output of ") {}

    void observe(const matrix_place& place, const float* g, std::int64_t tokens,
                 std::int64_t out) override {
      auto& sums = sums_[place.index()];
      if (!sums) {
        sums.emplace(engine_.be_, out,
                     ressvd::gram_options{.name = name_ + name_of(place), .channel_means = false});
      }
      sums->add(uploaded(engine_.be_, g, tokens, out).view().transposed());
    }

    ressvd::gram_state take(const matrix_place& place) override {
      auto& sums = sums_[place.index()];
      if (!sums) return {};
      ressvd::gram_state state = sums->state();
      sums.reset();
      return state;
    }

   private:
    factoring_on_backend& engine_;
    std::string name_;
    std::map<std::size_t, std::optional<accumulator>> sums_; // by matrix_place::index
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
      const auto shifted = uploaded(engine_.be_, x, tokens, features_);
      if (original == nullptr) {
        input_.observe(shifted.view().transposed());
      } else {
        const auto y = uploaded(engine_.be_, original, tokens, features_);
        input_.observe(shifted.view().transposed(), y.view().transposed());
      }
    }

    linear update(const factored_module& m, const linear& original,
                  const ressvd::rank_choice& choice) override {
      return engine_.linear_of(input_.update(engine_.restored(m, original), method_, choice),
                               original);
    }

    linear truncate(const linear& original, const matrix_curvature* curvature,
                    const ressvd::rank_choice& choice) override {
      B& be = engine_.be_;
      const linear_module none{};
      const gradient_statistics gradients(engine_, be, curvature ? curvature->module : none,
                                          curvature);
      const auto w = gradients.attached_to(weight_of(be, original));
      return engine_.linear_of(input_.truncate(w, method_, choice), original);
    }

   private:
    factoring_on_backend& engine_;
    std::int64_t features_;
    ressvd::any_method method_;
    ressvd::shifted_input<B> input_;
  };

  // Calls body(backend, i) for each of `readers`. Matrices too small for threads inside go side by
  // side, each on a context of its own.
  template <class Body>
  void for_each_small(const std::vector<linear_module>& modules,
                      const std::vector<std::size_t>& readers, const Body& body) {
    if constexpr (std::is_same_v<space, ressvd::host_space>) {
      constexpr std::int64_t small = 512;
      const bool all_small = std::ranges::all_of(readers, [&](std::size_t i) {
        return (std::min)(modules[i].out, modules[i].in) <= small;
      });
      if (all_small && readers.size() > 1 && thread_count() > 1) {
        parallel_each(std::ssize(readers), [&](std::int64_t i) {
          B be(std::make_shared<ressvd::host_context>(ressvd::host_context_options{.threads = 1}));
          body(be, readers[static_cast<std::size_t>(i)]);
        });
        return;
      }
    }
    for (const std::size_t i : readers)
      body(be_, i);
  }

  // Row-major rows × cols values, held transposed and column-major.
  static ressvd::matrix<float, space> uploaded(B& be, const float* values, std::int64_t rows,
                                               std::int64_t cols) {
    auto held = be.allocate(cols, rows);
    be.upload({values, cols, rows, cols}, held);
    return held;
  }

  static ressvd::weight<B> weight_of(B& be, const linear& l) {
    const auto values = l.dense.values();
    return {be, uploaded(be, values.data(), l.out(), l.in()).view().transposed()};
  }

  ressvd::factored_matrix<B> restored(const factored_module& m, const linear& original) {
    auto w = std::make_shared<const ressvd::weight<B>>(weight_of(be_, original));
    return ressvd::factored_matrix<B>::from_state(be_, std::move(w), m.state);
  }

  ressvd::matrix<double, space> row_importance(B& be, const linear_module& module) const {
    if (!fisher_) return {};
    const auto f = read_f32(*fisher_, module.weight_name(), {module.out, module.in});
    const auto held = uploaded(be, f.data(), module.out, module.in);
    return ressvd::methods::fisher_row_importance(be, held.view().transposed());
  }

  // The factors as the linear layer that takes the place of `original`.
  linear linear_of(const ressvd::compressed_matrix<B>& compressed, const linear& original) {
    const auto& f = compressed.factors;
    if (options_.form == ressvd::factored_form::pivoted) {
      const auto pivoted = ressvd::pivot(be_, f).pair;
      return make_pivoted_linear(
          weight_matrix(pivoted.c.rows(), pivoted.rank(), row_major(pivoted.c)),
          weight_matrix(pivoted.rank(), pivoted.cols(), row_major(pivoted.z)),
          {pivoted.order.begin(), pivoted.order.end()}, original.bias);
    }
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
  compress_options options_;
  std::optional<checkpoint> fisher_;
};

} // namespace ressvd_llm
