// SPDX-License-Identifier: Apache-2.0
//
// ressvd.h over the CPU backend in float.
#include "ressvd/ressvd.h"

#include <exception>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "ressvd/compiled.hpp"
#include "ressvd/version.hpp"

namespace {

using backend = ressvd::eigen_backend<float>;
using ressvd::index_t;

thread_local std::string message;

/// f(), with exceptions turned into a status and a message.
template <class F>
ressvd_status guarded(F f) {
  try {
    f();
    return RESSVD_OK;
  } catch (const ressvd::nonfinite_error& e) {
    message = e.what();
    return RESSVD_NONFINITE;
  } catch (const ressvd::indefinite_error& e) {
    message = e.what();
    return RESSVD_INDEFINITE;
  } catch (const std::invalid_argument& e) {
    message = e.what();
    return RESSVD_INVALID_ARGUMENT;
  } catch (const ressvd::workspace_error& e) {
    message = e.what();
    return RESSVD_OUT_OF_MEMORY;
  } catch (const std::bad_alloc&) {
    message = "ressvd: out of memory";
    return RESSVD_OUT_OF_MEMORY;
  } catch (const std::exception& e) {
    message = e.what();
    return RESSVD_FAILED;
  } catch (...) {
    message = "ressvd: an exception that is no std::exception";
    return RESSVD_FAILED;
  }
}

template <class T>
T& existing(T* pointer, const char* name) {
  ressvd::detail::require(pointer != nullptr, name, " is a null pointer");
  return *pointer;
}

ressvd::layout layout_of(ressvd_layout order) {
  ressvd::detail::require(order == RESSVD_ROW_MAJOR || order == RESSVD_COL_MAJOR, "layout ",
                          static_cast<int>(order), " is none");
  return order == RESSVD_ROW_MAJOR ? ressvd::layout::row_major : ressvd::layout::col_major;
}

/// f(view of elements) for a ressvd_view or ressvd_buffer, its ld made explicit.
template <class View, class F>
void with_elements(const View& v, F f) {
  const ressvd::layout order = layout_of(v.layout);
  const index_t packed = order == ressvd::layout::row_major ? v.cols : v.rows;
  const index_t ld = v.ld == 0 ? packed : v.ld;
  const auto as = [&]<class U>(U) {
    using element = std::conditional_t<std::is_same_v<View, ressvd_view>, const U, U>;
    f(ressvd::matrix_view<element>{static_cast<element*>(v.data), v.rows, v.cols, ld, order});
  };
  switch (v.type) {
    case RESSVD_FLOAT32:
      return as(float{});
    case RESSVD_FLOAT64:
      return as(double{});
    case RESSVD_FLOAT16:
      return as(ressvd::half{});
    case RESSVD_BFLOAT16:
      return as(ressvd::bfloat16{});
  }
  ressvd::detail::fail("element type ", static_cast<int>(v.type), " is none");
}

ressvd::any_method method_of(const ressvd_options& options) {
  auto method = ressvd::method_named(&existing(options.method, "the method's name"));
  if (auto* m = std::get_if<ressvd::methods::ressvd>(&method.chosen)) m->beta = options.beta;
  if (auto* m = std::get_if<ressvd::methods::asvd>(&method.chosen)) m->alpha = options.alpha;
  if (auto* m = std::get_if<ressvd::methods::tempered>(&method.chosen)) m->power = options.power;
  return method;
}

ressvd::rank_target target_of(const ressvd_target& target) {
  if (target.rank != 0) return ressvd::at_rank(target.rank);
  return ressvd::at_ratio(target.ratio,
                          {.multiple = target.rank_multiple == 0 ? 1 : target.rank_multiple});
}

const char* name_of(ressvd::whitening_path path) {
  switch (path) {
    case ressvd::whitening_path::cholesky:
      return "cholesky";
    case ressvd::whitening_path::damped_cholesky:
      return "damped cholesky";
    case ressvd::whitening_path::qr:
      return "qr";
    case ressvd::whitening_path::power:
      return "power";
    case ressvd::whitening_path::plain:
      return "plain";
    case ressvd::whitening_path::eigenvalues:
      break;
  }
  return "eigenvalues";
}

} // namespace

struct ressvd_context {
  backend be;
};
struct ressvd_gram {
  ressvd::gram_accumulator<backend> sums;
};
struct ressvd_calibration {
  ressvd::calibration<backend> input;
};
struct ressvd_factored {
  ressvd::factored_matrix<backend> factored;
};
struct ressvd_matrix {
  backend be;
  ressvd::compressed_matrix<backend> compressed;
};

namespace {

/// f(input, prepared weight, method): what factoring and compressing begin with.
template <class F>
void with_weight(ressvd_context* context, ressvd_calibration* calibration, const ressvd_view* w,
                 const ressvd_options* options, F f) {
  backend& be = existing(context, "the context").be;
  const ressvd_options& chosen = existing(options, "the options");
  const auto method = method_of(chosen);
  ressvd::calibration<backend> nothing(be);
  auto& input = calibration == nullptr ? nothing : calibration->input;
  with_elements(existing(w, "W"), [&](const auto& view) {
    ressvd::weight<backend> weight(be, view);
    if (chosen.row_importance != nullptr) {
      weight.row_importance = {chosen.row_importance, weight.rows(), 1, weight.rows()};
    }
    if (chosen.output_curvature != nullptr) {
      weight.output_curvature = {chosen.output_curvature, weight.rows(), weight.rows(),
                                 weight.rows()};
    }
    f(input, std::move(weight), method);
  });
}

const ressvd::low_rank<float>& factors_of(const ressvd_matrix* matrix) {
  const auto& compressed = existing(matrix, "the matrix").compressed;
  ressvd::detail::require(!compressed.dense(), "the matrix stays dense (", compressed.report.rows,
                          " x ", compressed.report.cols, "): it has no factors");
  return compressed.factors;
}

void export_to(backend be, const ressvd::matrix<float>& factor, const ressvd_buffer* out,
               const char* name) {
  if (out == nullptr) return;
  with_elements(*out, [&](const auto& view) { ressvd::export_to(be, factor, view, name); });
}

} // namespace

const char* ressvd_version(void) {
  return RESSVD_VERSION_STRING;
}

const char* ressvd_message(void) {
  return message.c_str();
}

ressvd_status ressvd_context_create(int threads, ressvd_context** context) {
  return guarded([&] {
    auto& place = existing(context, "the context's place");
    place = new ressvd_context{backend(
        std::make_shared<ressvd::host_context>(ressvd::host_context_options{.threads = threads}))};
  });
}

void ressvd_context_destroy(ressvd_context* context) {
  delete context;
}

ressvd_status ressvd_gram_create(ressvd_context* context, int64_t features, ressvd_gram** gram) {
  return guarded([&] {
    const backend& be = existing(context, "the context").be;
    auto made = std::unique_ptr<ressvd_gram>(
        new ressvd_gram{ressvd::gram_accumulator<backend>(be, features)});
    existing(gram, "the Gram's place") = made.release();
  });
}

ressvd_status ressvd_gram_add(ressvd_gram* gram, const ressvd_view* batch) {
  return guarded([&] {
    auto& sums = existing(gram, "the Gram").sums;
    with_elements(existing(batch, "the batch"), [&](const auto& x) { sums.add(x); });
  });
}

int64_t ressvd_gram_tokens(const ressvd_gram* gram) {
  return gram == nullptr ? 0 : gram->sums.tokens();
}

ressvd_status ressvd_gram_read(ressvd_gram* gram, double* values) {
  return guarded([&] {
    const auto state = existing(gram, "the Gram").sums.state();
    std::copy(state.gram.begin(), state.gram.end(), &existing(values, "the values' place"));
  });
}

void ressvd_gram_destroy(ressvd_gram* gram) {
  delete gram;
}

ressvd_status ressvd_calibration_create(ressvd_gram** gram, ressvd_calibration** calibration) {
  return guarded([&] {
    ressvd_gram*& given = existing(gram, "the Gram's place");
    auto& place = existing(calibration, "the calibration's place");
    auto& sums = existing(given, "the Gram").sums;
    ressvd::detail::require(sums.tokens() > 0, "no tokens were added to the Gram");
    const backend be = sums.handle();
    place = new ressvd_calibration{ressvd::calibration<backend>(be, std::move(sums))};
    delete std::exchange(given, nullptr);
  });
}

void ressvd_calibration_destroy(ressvd_calibration* calibration) {
  delete calibration;
}

ressvd_status ressvd_whiten(ressvd_calibration* calibration, ressvd_whitening* report) {
  return guarded([&] {
    const auto& made = existing(calibration, "the calibration").input.whitening().report;
    existing(report, "the report's place") = {name_of(made.path), made.damping,
                                              made.relative_damping, made.condition};
  });
}

ressvd_options ressvd_default_options(void) {
  return {"ressvd",
          ressvd::methods::ressvd{}.beta,
          ressvd::methods::asvd{}.alpha,
          ressvd::methods::tempered{}.power,
          nullptr,
          nullptr};
}

ressvd_status ressvd_factor(ressvd_context* context, ressvd_calibration* calibration,
                            const ressvd_view* w, const ressvd_options* options,
                            const int64_t* ranks, int64_t rank_count, ressvd_factored** factored) {
  return guarded([&] {
    ressvd::detail::require(rank_count >= 0, "a list of ", rank_count, " ranks");
    const auto count = static_cast<std::size_t>(rank_count);
    std::vector<index_t> wanted(count);
    if (count > 0) std::copy_n(&existing(ranks, "the ranks"), count, wanted.begin());
    auto& place = existing(factored, "the factored matrix' place");
    with_weight(
        context, calibration, w, options, [&](auto& input, auto weight, const auto& method) {
          place = new ressvd_factored{input.factor(std::move(weight), method, std::move(wanted))};
        });
  });
}

int64_t ressvd_singular_value_count(const ressvd_factored* factored) {
  return factored == nullptr ? 0 : std::ssize(factored->factored.singular_values());
}

ressvd_status ressvd_singular_values(const ressvd_factored* factored, double* values) {
  return guarded([&] {
    const auto& all = existing(factored, "the factored matrix").factored.singular_values();
    std::copy(all.begin(), all.end(), &existing(values, "the values' place"));
  });
}

void ressvd_factored_destroy(ressvd_factored* factored) {
  delete factored;
}

ressvd_status ressvd_factored_at(const ressvd_factored* factored, const ressvd_target* target,
                                 ressvd_matrix** matrix) {
  return guarded([&] {
    const auto& f = existing(factored, "the factored matrix").factored;
    auto& place = existing(matrix, "the matrix' place");
    place = new ressvd_matrix{f.handle(), f.at(target_of(existing(target, "the target")))};
  });
}

ressvd_status ressvd_compress(ressvd_context* context, ressvd_calibration* calibration,
                              const ressvd_view* w, const ressvd_options* options,
                              const ressvd_target* target, ressvd_matrix** matrix) {
  return guarded([&] {
    const auto wanted = target_of(existing(target, "the target"));
    auto& place = existing(matrix, "the matrix' place");
    with_weight(
        context, calibration, w, options, [&](auto& input, auto weight, const auto& method) {
          place = new ressvd_matrix{context->be, input.compress(std::move(weight), method, wanted)};
        });
  });
}

void ressvd_matrix_destroy(ressvd_matrix* matrix) {
  delete matrix;
}

ressvd_status ressvd_matrix_report(const ressvd_matrix* matrix, ressvd_report* report) {
  return guarded([&] {
    const auto& r = existing(matrix, "the matrix").compressed.report;
    constexpr double unknown = std::numeric_limits<double>::quiet_NaN();
    const auto active = r.activation_loss.value_or(ressvd::loss{unknown, unknown});
    existing(report, "the report's place") = {r.rows,
                                              r.cols,
                                              r.choice.rank,
                                              r.intermediate_rank,
                                              r.choice.dense ? 1 : 0,
                                              r.compression_ratio,
                                              r.weight_loss.absolute,
                                              r.weight_loss.relative,
                                              active.absolute,
                                              active.relative,
                                              r.seconds};
  });
}

ressvd_status ressvd_matrix_export(const ressvd_matrix* matrix, const ressvd_buffer* u,
                                   const ressvd_buffer* v) {
  return guarded([&] {
    const auto& factors = factors_of(matrix);
    export_to(matrix->be, factors.u, u, "u");
    export_to(matrix->be, factors.v, v, "v");
  });
}

ressvd_status ressvd_apply(const ressvd_matrix* matrix, const ressvd_view* x, const float* bias,
                           const ressvd_buffer* y) {
  return guarded([&] {
    const auto& factors = factors_of(matrix);
    backend be = matrix->be;
    const auto addend = bias == nullptr ? ressvd::matrix_view<const float>{}
                                        : ressvd::col_major(bias, factors.rows(), 1);
    with_elements(existing(x, "x"), [&](const auto& inputs) {
      with_elements(existing(y, "y"), [&](const auto& outputs) {
        ressvd::apply(be, factors, inputs.transposed(), outputs.transposed(), addend);
      });
    });
  });
}

ressvd_status ressvd_allocate_ranks(const ressvd_allocation_matrix* matrices, int64_t count,
                                    int64_t budget, ressvd_rank* ranks, double* loss,
                                    double* loss_bound) {
  return guarded([&] {
    ressvd::detail::require(count >= 1, "no matrices to allocate ranks to");
    const ressvd_allocation_matrix* given = &existing(matrices, "the matrices");
    ressvd_rank* places = &existing(ranks, "the ranks' place");
    std::vector<ressvd::allocation_matrix> problem;
    for (int64_t j = 0; j < count; ++j) {
      const ressvd_allocation_matrix& m = given[j];
      ressvd::detail::require(m.count >= 0 && (m.count == 0 || m.singular_values != nullptr),
                              "matrix ", j, " has ", m.count, " singular values at a null pointer");
      problem.push_back({.singular_values = {m.singular_values, static_cast<std::size_t>(m.count)},
                         .rows = m.rows,
                         .cols = m.cols,
                         .sensitivity = m.sensitivity,
                         .rank_multiple = m.rank_multiple == 0 ? 1 : m.rank_multiple});
    }
    const auto result = ressvd::allocate_ranks(problem, budget);
    for (int64_t j = 0; j < count; ++j) {
      const auto& choice = result.ranks[static_cast<std::size_t>(j)];
      places[j] = {choice.rank, choice.dense ? 1 : 0};
    }
    if (loss != nullptr) *loss = result.loss;
    if (loss_bound != nullptr) *loss_bound = result.loss_bound;
  });
}
