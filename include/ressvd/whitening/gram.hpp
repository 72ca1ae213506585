// SPDX-License-Identifier: Apache-2.0
//
// Streaming Gram accumulation: G = Σ_batches X·Xᵀ over calibration activations X (features ×
// tokens). The same pass sums Σ_t |x_it| (ASVD's channel means) and, when asked, the cross-Gram
// C = Σ X°·Xᵀ with a second input X° (the activations of the uncompressed model).
//
//   cost        (n² + 512n)t flops a batch of t tokens on the CPU (the symmetry is used, by panels
//               of 512 columns), 2n·n°t more for C
//   memory      8n² bytes for G in double, 8n·n° for C, 8n for the means
//   workspace   scratch for one chunk of at most 2048 tokens in the product type
//   blocks      the finiteness check of add waits for its result, unless finite_check::deferred
//   precision   products of float, half and bfloat16 are formed in float, 2048 at a time (on CUDA
//               8192 of the 16-bit types), and summed in double, whatever the backend's scalar;
//               batches whose magnitude would
//               leave float's range are formed in double (not under finite_check::deferred, which
//               does not look at the magnitude)
//   source      SVD-LLM, arXiv 2403.07378, section 3 (G); the means: ASVD, arXiv 2312.05821
#pragma once

#include <cmath>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "ressvd/core/backend.hpp"
#include "ressvd/detail/finite.hpp"

namespace ressvd {
inline namespace v0 {

/// What the rows of a batch are.
enum class token_order : std::uint8_t { tokens_by_features, features_by_tokens };

/// When a batch is checked for NaN and infinity: before it is added (the caller gets an error and
/// the sums stay as they were), or only when the sums are read (add never waits for the device;
/// a bad batch then spoils the sums, which is found out at the reading).
enum class finite_check : std::uint8_t { immediate, deferred };

struct gram_options {
  std::string name = "activations"; ///< what error messages call the batches
  bool channel_means = true;        ///< also sum |x| for each feature
  index_t cross_features = 0;       ///< features of the second input; 0: no cross-Gram
  finite_check check = finite_check::immediate;
};

/// The accumulated sums on the host, for files and for other machines. Matrices are column-major.
struct gram_state {
  index_t features = 0;
  index_t tokens = 0;
  std::vector<double> gram = {};    ///< features × features
  std::vector<double> abs_sum = {}; ///< features, or empty
  index_t cross_features = 0;
  std::vector<double> cross = {}; ///< cross_features × features, or empty
};

template <backend B>
class gram_accumulator {
 public:
  using space = typename B::space;

  /// An empty accumulator for activations of `features` channels. Allocates and clears the sums.
  /// Throws std::invalid_argument unless features ≥ 1.
  gram_accumulator(const B& be, index_t features, gram_options options = {})
      : be_(be), options_(std::move(options)) {
    detail::require(features >= 1, "a Gram of ", features, " features was asked for");
    detail::require(options_.cross_features >= 0, "a cross-Gram of ", options_.cross_features,
                    " features was asked for");
    gram_ = zeros(features, features);
    if (options_.channel_means) abs_sum_ = zeros(features, 1);
    if (options_.cross_features > 0) cross_ = zeros(options_.cross_features, features);
  }

  /// G += X·Xᵀ for a batch of any number of tokens, any layout and leading dimension.
  /// Throws std::invalid_argument for a wrong shape, nonfinite_error for NaN or infinity; the sums
  /// are unchanged then.
  template <readable_matrix<space> X>
  void add(const X& batch, token_order order = token_order::tokens_by_features) {
    detail::require(options_.cross_features == 0, options_.name,
                    ": a cross-Gram is accumulated, so each batch needs its second input");
    const auto x = checked(const_view(batch), order, features(), options_.name);
    add_gram(x.view, x.max_abs);
  }

  /// G += X·Xᵀ and C += X°·Xᵀ: `original` holds the same tokens as `batch`, in the same order.
  template <readable_matrix<space> X, readable_matrix<space> Y>
  void add(const X& batch, const Y& original, token_order order = token_order::tokens_by_features) {
    detail::require(options_.cross_features > 0, options_.name,
                    ": a second input was given, but no cross-Gram is accumulated");
    const auto x = checked(const_view(batch), order, features(), options_.name);
    const auto y = checked(const_view(original), order, options_.cross_features,
                           options_.name + " (second input)");
    detail::require(x.view.cols == y.view.cols, options_.name, " has ", x.view.cols,
                    " tokens, its second input ", y.view.cols);
    in_product_range(x.view, (std::max)(x.max_abs, y.max_abs), [&](auto part, index_t first) {
      in_matching_type(y.view.part(0, first, y.view.rows, part.cols), part,
                       [&](auto other) { be_.add_product(other, part, cross_); });
    });
    add_gram(x.view, x.max_abs);
  }

  /// Adds what another accumulator of the same kind has seen: exact addition, so several machines
  /// may share the work.
  void merge(const gram_accumulator& other) {
    detail::require(
        other.features() == features() && other.options_.channel_means == options_.channel_means &&
            other.options_.cross_features == options_.cross_features,
        "cannot merge a Gram of ", other.features(), " features (means ",
        other.options_.channel_means, ", cross ", other.options_.cross_features, ") into one of ",
        features(), " (means ", options_.channel_means, ", cross ", options_.cross_features, ")");
    be_.add(1.0, other.gram_.ref(), gram_);
    if (options_.channel_means) be_.add(1.0, other.abs_sum_.ref(), abs_sum_);
    if (options_.cross_features > 0) be_.add(1.0, other.cross_.ref(), cross_);
    tokens_ += other.tokens_;
  }

  index_t features() const { return gram_.rows(); }
  index_t tokens() const { return tokens_; }

  /// G, both triangles. Valid until the next call that changes the sums.
  /// Throws std::invalid_argument without any tokens, and nonfinite_error when a batch accepted
  /// under finite_check::deferred spoiled the sums.
  block<const double, space> gram() {
    detail::require(tokens_ > 0, options_.name, ": no tokens were accumulated");
    return sums();
  }

  /// C = Σ X°·Xᵀ, cross_features × features.
  block<const double, space> cross() {
    detail::require(options_.cross_features > 0, options_.name, ": no cross-Gram was accumulated");
    return read(cross_);
  }

  /// mean_t |x_it|, features × 1, owned by the caller.
  matrix<double, space> mean_abs() {
    detail::require(options_.channel_means, options_.name, ": no channel means were accumulated");
    detail::require(tokens_ > 0, options_.name, ": no tokens were accumulated");
    read(abs_sum_);
    auto mean = be_.allocate(features(), 1);
    be_.copy(abs_sum_, mean.ref());
    be_.scale(1.0 / static_cast<double>(tokens_), mean);
    return mean;
  }

  /// The backend that it sums on.
  B handle() const { return B(be_); }
  bool has_channel_means() const { return options_.channel_means; }
  const std::string& name() const { return options_.name; }

  /// The sums on the host. Blocks.
  gram_state state() {
    gram_state s{
        .features = features(), .tokens = tokens_, .cross_features = options_.cross_features};
    s.gram = to_host(sums());
    if (options_.channel_means) s.abs_sum = to_host(read(abs_sum_));
    if (options_.cross_features > 0) s.cross = to_host(cross());
    return s;
  }

  /// Continues from a state; the options must ask for the statistics that the state has.
  static gram_accumulator from_state(const B& be, const gram_state& s, gram_options options = {}) {
    options.channel_means = !s.abs_sum.empty();
    options.cross_features = s.cross_features;
    gram_accumulator g(be, s.features, std::move(options));
    detail::require(s.tokens >= 0, "a Gram state has ", s.tokens, " tokens");
    g.from_host(s.gram, g.gram_, "gram");
    if (!s.abs_sum.empty()) g.from_host(s.abs_sum, g.abs_sum_, "abs_sum");
    if (s.cross_features > 0) g.from_host(s.cross, g.cross_, "cross");
    g.tokens_ = s.tokens;
    return g;
  }

 private:
  block<const double, space> sums() {
    be_.mirror_lower(gram_);
    return read(gram_);
  }

  template <class U>
  struct checked_batch {
    matrix_view<const U, space> view; // features × tokens
    double max_abs;
  };

  matrix<double, space> zeros(index_t rows, index_t cols) {
    auto m = be_.allocate(rows, cols);
    be_.fill(m, 0.0);
    return m;
  }

  template <class U>
  checked_batch<U> checked(matrix_view<const U, space> batch, token_order order, index_t features,
                           const std::string& name) {
    detail::check_view(batch, name.c_str());
    const auto x = order == token_order::tokens_by_features ? batch.transposed() : batch;
    detail::require(x.rows == features, name, " has ", x.rows, " features, expected ", features);
    if (options_.check == finite_check::deferred) return {x, 1.0};
    return {x, detail::require_finite(be_, batch, name.c_str())};
  }

  template <class U>
  void add_gram(matrix_view<const U, space> x, double max_abs) {
    in_product_range(x, max_abs, [&](auto part, index_t) { be_.add_gram(part, gram_); });
    if (options_.channel_means) be_.add_row_abs(x, abs_sum_);
    tokens_ += x.cols;
  }

  /// Calls f(part of x, its first token): with x itself where products of float neither overflow
  /// nor vanish (|x|² · 8192 < 2^128 and |x|² > 2^-102), else with copies in double.
  template <class U, class F>
  void in_product_range(matrix_view<const U, space> x, double max_abs, F f) {
    const bool fits = max_abs < 0x1p57 && (max_abs > 0x1p-51 || max_abs == 0);
    if (fits || std::is_same_v<U, double>) return f(x, 0);
    constexpr index_t chunk = 2048;
    for (index_t t = 0; t < x.cols; t += chunk) {
      auto frame = be_.frame();
      const auto copy = be_.scratch(x.rows, (std::min)(chunk, x.cols - t));
      be_.copy(x.part(0, t, copy.rows, copy.cols), copy);
      f(const_view(copy), t);
    }
  }

  /// Calls f(y) with y in the element type of `like`.
  template <class U, class V, class F>
  void in_matching_type(matrix_view<const U, space> y, matrix_view<const V, space>, F f) {
    if constexpr (std::is_same_v<U, V>) {
      f(y);
    } else {
      auto frame = be_.frame();
      const auto copy = be_.scratch(y.rows, y.cols);
      be_.copy(y, copy);
      f(const_view(copy));
    }
  }

  block<const double, space> read(const matrix<double, space>& sums) {
    if (options_.check == finite_check::deferred) {
      detail::require_finite(be_, sums.view(), options_.name.c_str());
    }
    return sums.ref();
  }

  std::vector<double> to_host(block<const double, space> a) {
    std::vector<double> host(static_cast<std::size_t>(a.size()));
    be_.download(a, {host.data(), a.rows, a.cols, a.rows});
    return host;
  }

  void from_host(const std::vector<double>& values, matrix<double, space>& out, const char* what) {
    detail::require(static_cast<index_t>(values.size()) == out.size(), "the Gram state's ", what,
                    " has ", values.size(), " values, expected ", out.size());
    for (const double v : values) {
      detail::require<nonfinite_error>(std::isfinite(v), "the Gram state's ", what, " has ", v);
    }
    be_.upload({values.data(), out.rows(), out.cols(), out.rows()}, out);
  }

  wide_backend<B> be_;
  gram_options options_;
  matrix<double, space> gram_;
  matrix<double, space> abs_sum_;
  matrix<double, space> cross_;
  index_t tokens_ = 0;
};

} // namespace v0
} // namespace ressvd
