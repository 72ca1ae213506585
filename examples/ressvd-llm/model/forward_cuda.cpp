// SPDX-License-Identifier: Apache-2.0
//
// The forward pass on a card. Products are cuBLAS's, of factors in the engine's type S with sums in
// float; kernels (model/forward_kernels.hpp) do the rest in float. Nothing waits within a layer.
//
// Attention is two batched products a block of queries, with a kernel for the softmax between them:
// on tensor cores both, at the price of the scores' memory, which is bounded by the options
// (of 4 bytes, and of 2 more for the weights in 16 bits). Blocks see the keys up to their last
// query.
#include <algorithm>
#include <array>
#include <cmath>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "model/device_cuda.hpp"
#include "model/forward_kernels.hpp"
#include "model/weights_on_card.hpp"
#include "model/window_groups.hpp"

namespace ressvd_llm {

namespace {

namespace cuda = ressvd::detail::cuda;
using ressvd::index_t;
using ressvd::op;

constexpr index_t least_queries = 64; // of a block
// Rows of scores begin at multiples of 16 bytes.
constexpr index_t score_alignment = 8;

template <class S>
const char* type_name() {
  return cuda::kernel_type<S>();
}

std::string added_kernel(const char* kernel, std::initializer_list<const char*> arguments) {
  return "ressvd_llm" + cuda::kernel_name(kernel, arguments).substr(sizeof("ressvd") - 1);
}

// One block a row, with a power of two of threads.
cuda::launch_shape a_block_each(index_t rows, index_t width) {
  unsigned threads = 32;
  while (threads < 256 && threads < width)
    threads *= 2;
  return {dim3(cuda::blocks_for(rows, 1, 0x7fffffff)), dim3(threads)};
}

// Where something was not finite: the first place in the order of computation. 0 is the embeddings,
// each layer has 16 places, the logits come last.
enum class layer_place : std::uint64_t { q, k, v, attention, o, gate, up, down };
constexpr std::uint64_t no_place = ~std::uint64_t{0};
constexpr std::uint64_t logits_place = no_place - 1;

std::uint64_t place_in(std::int64_t layer, layer_place where) {
  return 16 * static_cast<std::uint64_t>(layer + 1) + static_cast<std::uint64_t>(where);
}

std::string name_of_place(std::uint64_t place) {
  constexpr std::array<const char*, 8> names = {"output of q",  "output of k",   "output of v",
                                                "attention",    "output of o",   "output of gate",
                                                "output of up", "output of down"};
  if (place == logits_place) return "logits";
  if (place < 16) return "embeddings";
  return "layer " + std::to_string(place / 16 - 1) + ", " + names.at(place % 16);
}

// What an engine and its matrices share.
struct card_state {
  explicit card_state(std::shared_ptr<ressvd::cuda_context> of)
      : context(std::move(of)), first_bad(context->allocate<std::uint64_t>(1)) {
    forget();
  }

  template <class... Args>
  void launch(cuda::launch_shape shape, const std::string& kernel, Args... args) {
    context->launch_added(forward_kernels, shape, kernel, args...);
  }

  void forget() {
    cuda::check(cudaMemsetAsync(first_bad.get(), 0xff, sizeof(std::uint64_t), context->stream()));
  }

  // Waits for everything queued.
  void require_finite() {
    std::uint64_t place = no_place;
    context->read(first_bad.get(), &place, 1);
    if (place == no_place) return;
    forget();
    throw std::runtime_error(name_of_place(place) + ": not finite: the model does not compute");
  }

  std::shared_ptr<ressvd::cuda_context> context;
  std::shared_ptr<std::uint64_t[]> first_bad;
};

class card_storage final : public matrix_storage {
 public:
  card_storage(std::shared_ptr<card_state> state, index_t rows, index_t cols)
      : state_(std::move(state)),
        data_(state_->context->allocate<float>(rows * cols)),
        size_(rows * cols),
        cols_(cols) {}

  memory_space space() const override { return memory_space::cuda; }
  float* data() override { return data_.get(); }

  std::unique_ptr<matrix_storage> copy(std::int64_t first, std::int64_t count) const override {
    auto result = std::make_unique<card_storage>(state_, count, cols_);
    result->place = place;
    if (count > 0)
      cuda::check(cudaMemcpyAsync(result->data_.get(), data_.get() + first * cols_,
                                  static_cast<std::size_t>(count * cols_) * sizeof(float),
                                  cudaMemcpyDeviceToDevice, state_->context->stream()));
    return result;
  }

  void read(std::int64_t first, std::span<float> values) const override {
    if (values.empty()) return;
    state_->context->copy_to_host(data_.get() + first * cols_, values.data(), std::ssize(values));
    state_->require_finite();
  }

  square_sums compare(const matrix_storage& other) const override {
    if (size_ == 0) return {};
    const ressvd::workspace_frame frame(state_->context->scratch);
    const cuda::launch_shape shape = cuda::over_for_sum(size_, 1);
    std::vector<double> sums(2 * static_cast<std::size_t>(shape.grid.x));
    auto* on_card = state_->context->take<double>(std::ssize(sums));
    state_->launch(shape, "ressvd_llm::compare<float>", values(), of(other).values(), size_,
                   on_card);
    state_->context->copy_to_host(on_card, sums.data(), std::ssize(sums));
    state_->require_finite();
    square_sums result;
    for (std::size_t i = 0; i < sums.size(); i += 2) {
      result.difference += sums[i];
      result.reference += sums[i + 1];
    }
    return result;
  }

  std::vector<double> losses(std::span<const std::int32_t> targets,
                             std::int64_t cols) const override {
    const auto rows = std::ssize(targets);
    for (const std::int32_t target : targets)
      if (target < 0 || target >= cols)
        throw std::invalid_argument("next_token_losses: target " + std::to_string(target) +
                                    " outside the vocabulary of " + std::to_string(cols));
    const ressvd::workspace_frame frame(state_->context->scratch);
    auto* ids = state_->context->take<std::int32_t>(rows);
    cuda::check(cudaMemcpyAsync(ids, targets.data(), targets.size_bytes(), cudaMemcpyHostToDevice,
                                state_->context->stream()));
    return row_figures(rows, [&](double* figures) {
      state_->launch(a_block_each(rows, cols), "ressvd_llm::next_token_losses<float>", values(),
                     ids, index_t{cols}, index_t{rows}, figures, logits_place,
                     state_->first_bad.get());
    });
  }

  std::vector<double> divergences(const matrix_storage& other, std::int64_t rows,
                                  std::int64_t cols) const override {
    const ressvd::workspace_frame frame(state_->context->scratch);
    return row_figures(rows, [&](double* figures) {
      state_->launch(a_block_each(rows, cols), "ressvd_llm::kl_divergences<float>", values(),
                     of(other).values(), index_t{cols}, index_t{rows}, figures, logits_place,
                     state_->first_bad.get());
    });
  }

  // Where its values come from.
  std::uint64_t place = 0;

 private:
  const float* values() const { return data_.get(); }

  static const card_storage& of(const matrix_storage& other) {
    if (other.space() != memory_space::cuda)
      throw std::logic_error("matrices of two engines cannot be compared");
    return static_cast<const card_storage&>(other);
  }

  template <class Launch>
  std::vector<double> row_figures(index_t rows, const Launch& launch) const {
    std::vector<double> figures(static_cast<std::size_t>(rows));
    if (rows == 0) return figures;
    auto* on_card = state_->context->take<double>(rows);
    launch(on_card);
    state_->context->copy_to_host(on_card, figures.data(), rows);
    state_->require_finite();
    return figures;
  }

  std::shared_ptr<card_state> state_;
  std::shared_ptr<float[]> data_;
  index_t size_;
  index_t cols_;
};

// Room on the card that grows; what was in it is lost then.
template <class T>
class card_buffer {
 public:
  T* reserve(ressvd::cuda_context& context, index_t count) {
    if (count > size_) {
      data_.reset();
      data_ = context.allocate<T>(count);
      size_ = count;
    }
    return data_.get();
  }

 private:
  std::shared_ptr<T[]> data_;
  index_t size_ = 0;
};

struct rope_on_card {
  explicit rope_on_card(const model_config& config) : table(config) {}

  rope_table table;
  std::int64_t reserved = 0;
  std::shared_ptr<float[]> cosines;
  std::shared_ptr<float[]> sines;
};

model_config with_local_rope(model_config config) {
  config.rope = *config.local_rope;
  return config;
}

template <class S>
class cuda_forward final : public forward_engine {
 public:
  cuda_forward(const model_config& config, const device& card, const card_forward_options& options)
      : config_(config),
        options_(options),
        state_(std::make_shared<card_state>(card.context)),
        weights_(card.context, options.weight_bytes),
        rope_(config) {
    if (config.local_rope) local_rope_.emplace(with_local_rope(config));
  }

  engine_matrix embed(const outer_weights& weights, std::span<const std::int32_t> ids,
                      std::int64_t window_length) override {
    check_ids(config_, weights, ids, window_length, 0);
    const auto tokens = static_cast<index_t>(std::ssize(ids));
    const index_t width = config_.hidden_size;
    engine_matrix hidden = make(tokens, width);
    if (tokens == 0) return hidden;
    const auto on_card = weights_.vector(std::vector<std::int32_t>(ids.begin(), ids.end()));
    const matrix_on_card<S> table = weights_.matrix(weights.embedding);
    const matrix_on_card<S> positions = weights_.matrix(weights.positions);
    launch(cuda::over(width, tokens), added_kernel("embed", {type_name<S>()}), in(table.data),
           in(on_card), static_cast<float>(config_.embedding_scale), in(positions.data),
           index_t{opt_position_offset}, index_t{window_length}, width, tokens, hidden_of(hidden));
    return hidden;
  }

  void layer(const layer_weights& weights, engine_matrix& hidden, std::int64_t window_length,
             const input_observer* observer) override {
    const index_t windows = windows_of(hidden.rows(), window_length);
    reserve_positions(window_length);
    weights_.release_matrix();
    auto& states = static_cast<card_storage&>(*hidden.storage());
    {
      const layer_on_card<S> on_card = weights_.layer(weights);
      const index_t at_once = std::max<index_t>(1, options_.group_tokens / window_length);
      for (index_t first = 0; first < windows; first += at_once)
        run(weights, on_card, states.data() + first * window_length * config_.hidden_size,
            std::min(at_once, windows - first), window_length, states.place, observer);
    }
    states.place = place_in(weights.index, layer_place::down);
    weights_.fetch_next();
  }

  void announce(const layer_weights& weights) override { weights_.announce(weights); }

  void logits(const outer_weights& weights, const engine_matrix& hidden, std::int64_t first,
              std::int64_t count, engine_matrix& logits) override {
    const index_t width = config_.hidden_size;
    if (logits.rows() != count || logits.cols() != config_.vocab)
      logits = make(count, config_.vocab);
    if (count == 0) return;
    const auto& states = static_cast<const card_storage&>(*hidden.storage());
    S* const normed = input_.reserve(context(), count * width);
    normalise(weights_.norm(weights.final_norm), hidden_of(hidden) + first * width, count, normed,
              states.place);
    product(weights_.matrix(weights.head), normed, count, hidden_of(logits), false);
    if (config_.logit_cap > 0)
      launch(cuda::over(count * config_.vocab, 1), "ressvd_llm::cap_values<float>",
             static_cast<float>(config_.logit_cap), index_t{count * config_.vocab},
             hidden_of(logits));
  }

  engine_matrix upload(std::vector<float> hidden) override {
    const index_t rows = static_cast<index_t>(hidden.size()) / config_.hidden_size;
    engine_matrix result = make(rows, config_.hidden_size);
    if (rows == 0) return result;
    cuda::check(cudaMemcpyAsync(hidden_of(result), hidden.data(), hidden.size() * sizeof(float),
                                cudaMemcpyHostToDevice, context().stream()));
    context().synchronize();
    return result;
  }

  std::vector<float> download(const activation_view& x) override {
    std::vector<S> stored(static_cast<std::size_t>(x.rows * x.cols));
    context().copy_to_host(static_cast<const S*>(x.data), stored.data(), std::ssize(stored));
    state_->require_finite();
    std::vector<float> values(stored.size());
    decode(stored_type<S>(), reinterpret_cast<const std::byte*>(stored.data()), values);
    return values;
  }

 private:
  ressvd::cuda_context& context() { return *state_->context; }

  template <class... Args>
  void launch(cuda::launch_shape shape, const std::string& kernel, Args... args) {
    state_->launch(shape, kernel, args...);
  }

  template <class T>
  static const T* in(const std::shared_ptr<T[]>& data) {
    return data.get();
  }

  engine_matrix make(index_t rows, index_t cols) {
    return {std::make_unique<card_storage>(state_, rows, cols), rows, cols};
  }
  static float* hidden_of(const engine_matrix& m) { return m.storage()->data(); }

  void reserve_positions(std::int64_t count) {
    if (config_.family == model_family::opt) return;
    const auto reserve = [&](rope_on_card& rope) {
      if (rope.reserved >= count) return;
      rope.table.reserve(count);
      rope.cosines = weights_.vector(rope.table.cosines());
      rope.sines = weights_.vector(rope.table.sines());
      rope.reserved = count;
    };
    reserve(rope_);
    if (local_rope_) reserve(*local_rope_);
  }

  // y = norm(x), for products; y += norm(x).
  void normalise(const norm_on_card& norm, const float* x, index_t rows, S* y,
                 std::uint64_t place) {
    run_norm<S>("false", norm, x, rows, config_.hidden_size, y, place);
  }
  void add_normalised(const norm_on_card& norm, const float* x, index_t rows, float* y,
                      std::uint64_t place) {
    run_norm<float>("true", norm, x, rows, config_.hidden_size, y, place);
  }
  template <class T>
  void run_norm(const char* added, const norm_on_card& norm, const float* x, index_t rows,
                index_t width, T* y, std::uint64_t place) {
    launch(a_block_each(rows, width), added_kernel("norm", {type_name<T>(), added}), x,
           in(norm.scale), in(norm.shift), static_cast<float>(config_.norm_eps), width, rows, y,
           place, state_->first_bad.get());
  }

  void to_stored(const float* x, index_t width, index_t rows, S* y, std::uint64_t place) {
    launch(cuda::over(width, rows), added_kernel("to_stored", {type_name<S>()}), x, width, rows, y,
           place, state_->first_bad.get());
  }

  // y (tokens × rows of m) = or += x·mᵀ.
  void product(const matrix_on_card<S>& m, const S* x, index_t tokens, float* y, bool added) {
    cuda::gemm<S, float>(context(), op::transpose, op::none, 1.0f,
                         {m.data.get(), m.cols, m.rows, m.cols}, {x, m.cols, tokens, m.cols},
                         added ? 1.0f : 0.0f, {y, m.rows, tokens, m.rows});
  }

  // y = Wx + b, or y += that.
  void apply(const linear_on_card<S>& l, const S* x, index_t tokens, float* y, bool added,
             std::uint64_t place) {
    if (!l.dense.empty()) {
      product(l.dense, x, tokens, y, added);
      added = true;
    }
    const matrix_on_card<S>& right = l.z.empty() ? l.v : l.z;
    if (!right.empty()) {
      float* const inner = low_rank_.reserve(context(), tokens * l.rank);
      S* const inner_stored = low_rank_stored_.reserve(context(), tokens * l.rank);
      product(right, x, tokens, inner, false);
      to_stored(inner, l.rank, tokens, inner_stored, place);
      if (l.z.empty()) {
        product(l.u, inner_stored, tokens, y, added);
      } else {
        float* const others = others_.reserve(context(), tokens * (l.out - l.rank));
        product(l.c, inner_stored, tokens, others, false);
        launch(cuda::over(l.out, tokens), added_kernel("merge_rows", {added ? "true" : "false"}),
               inner, others, in(l.places), index_t{l.rank}, index_t{l.out}, tokens, y);
      }
    }
    if (l.bias != nullptr)
      launch(cuda::over(l.out, tokens), "ressvd_llm::add_bias<float>", in(l.bias), index_t{l.out},
             tokens, y);
  }

  // hidden += what the projection makes of x, behind its norm where there is one.
  void add_output(const linear_on_card<S>& l, const norm_on_card& norm, const S* x, index_t tokens,
                  float* hidden, std::uint64_t place) {
    if (norm.scale == nullptr) return apply(l, x, tokens, hidden, true, place);
    float* const output = outer_.reserve(context(), tokens * config_.hidden_size);
    apply(l, x, tokens, output, false, place);
    add_normalised(norm, output, tokens, hidden, place);
  }

  void run(const layer_weights& weights, const layer_on_card<S>& on_card, float* hidden,
           index_t windows, index_t length, std::uint64_t place, const input_observer* observer) {
    const index_t tokens = windows * length;
    const index_t width = config_.hidden_size;
    const index_t inner = config_.intermediate_size;
    const index_t q_width = config_.heads * config_.head_dim;
    const index_t kv_width = config_.kv_heads * config_.head_dim;
    const auto at = [&](layer_place where) { return place_in(weights.index, where); };
    const auto show = [&](input_group group, const S* x, index_t features) {
      if (observer == nullptr) return;
      (*observer)({group,
                   {.space = memory_space::cuda,
                    .type = stored_type<S>(),
                    .data = x,
                    .rows = tokens,
                    .cols = features}});
    };

    S* const input = input_.reserve(context(), tokens * width);
    normalise(on_card.attention_norm, hidden, tokens, input, place);
    show(input_group::attention, input, width);
    float* const q =
        outer_.reserve(context(), tokens * std::max({q_width + 2 * kv_width, 2 * inner, width}));
    float* const k = q + tokens * q_width;
    float* const v = k + tokens * kv_width;
    apply(on_card[projection::q], input, tokens, q, false, at(layer_place::q));
    apply(on_card[projection::k], input, tokens, k, false, at(layer_place::k));
    apply(on_card[projection::v], input, tokens, v, false, at(layer_place::v));
    S* const q_stored =
        stored_.reserve(context(), tokens * std::max(q_width + 2 * kv_width, inner));
    S* const k_stored = q_stored + tokens * q_width;
    S* const v_stored = k_stored + tokens * kv_width;
    const std::int64_t seen = window_of(config_, weights);
    position(q, config_.heads, on_card.q_norm, seen, length, tokens, q_stored, at(layer_place::q));
    position(k, config_.kv_heads, on_card.k_norm, seen, length, tokens, k_stored,
             at(layer_place::k));
    to_stored(v, kv_width, tokens, v_stored, at(layer_place::v));
    for (index_t w = 0; w < windows; ++w)
      attend(q_stored + w * length * q_width, k_stored + w * length * kv_width,
             v_stored + w * length * kv_width, length, seen, q + w * length * q_width);
    to_stored(q, q_width, tokens, q_stored, at(layer_place::attention));
    show(input_group::attention_output, q_stored, q_width);
    add_output(on_card[projection::o], on_card.attention_post_norm, q_stored, tokens, hidden,
               at(layer_place::o));

    normalise(on_card.mlp_norm, hidden, tokens, input, at(layer_place::o));
    show(input_group::mlp, input, width);
    const bool gated = on_card[projection::gate].out > 0;
    float* const up = outer_.reserve(context(), tokens * 2 * inner);
    float* const gate = gated ? up + tokens * inner : nullptr;
    apply(on_card[projection::up], input, tokens, up, false, at(layer_place::up));
    if (gated) apply(on_card[projection::gate], input, tokens, gate, false, at(layer_place::gate));
    launch(cuda::over(inner, tokens),
           added_kernel("activate", {type_name<S>(), activation_number()}), gate,
           at(layer_place::gate), up, at(layer_place::up), inner, tokens, q_stored,
           state_->first_bad.get());
    show(input_group::mlp_output, q_stored, inner);
    add_output(on_card[projection::down], on_card.mlp_post_norm, q_stored, tokens, hidden,
               at(layer_place::down));
  }

  const char* activation_number() const {
    switch (config_.activation) {
      case activation_kind::silu:
        return "0";
      case activation_kind::relu:
        return "1";
      case activation_kind::gelu:
        return "2";
      case activation_kind::gelu_tanh:
        break;
    }
    return "3";
  }

  // Heads behind their norm and at their positions, for products.
  void position(float* x, index_t heads, const std::shared_ptr<float[]>& norm, std::int64_t seen,
                index_t length, index_t tokens, S* y, std::uint64_t place) {
    const index_t head_dim = config_.head_dim;
    if (norm != nullptr)
      run_norm<float>("false", {norm, nullptr}, x, tokens * heads, head_dim, x, place);
    if (config_.family == model_family::opt)
      return to_stored(x, heads * head_dim, tokens, y, place);
    const rope_on_card& rope = local_rope_ && seen > 0 ? *local_rope_ : rope_;
    launch(cuda::over(head_dim / 2, heads * tokens), added_kernel("rotate", {type_name<S>()}), x,
           in(rope.cosines), in(rope.sines), index_t{0}, length, index_t{head_dim / 2}, heads,
           tokens, y, place, state_->first_bad.get());
  }

  // One window: out (queries × heads·head_dim) = softmax(cap(scale·QKᵀ))V for every head. Query
  // heads that share keys are batches of their own; each batch steps from key head to key head.
  void attend(const S* q, const S* k, const S* v, index_t length, index_t seen, float* out) {
    const index_t head_dim = config_.head_dim;
    const index_t kv_heads = config_.kv_heads;
    const index_t sharing = config_.heads / kv_heads;
    const index_t q_width = config_.heads * head_dim;
    const index_t kv_width = kv_heads * head_dim;
    const index_t longest = padded(length);
    const index_t block = std::clamp(
        options_.score_elements / (config_.heads * longest) / least_queries * least_queries,
        least_queries, std::max(length, least_queries));
    const index_t heads_at_once =
        std::clamp(options_.score_elements / (sharing * block * longest), index_t{1}, kv_heads);
    const float scale = config_.attention_scale > 0
                            ? static_cast<float>(config_.attention_scale)
                            : 1.0f / std::sqrt(static_cast<float>(head_dim));
    for (index_t start = 0; start < length; start += block) {
      const index_t rows = std::min(block, length - start);
      const index_t first_key = seen > 0 ? std::max<index_t>(0, start - seen + 1) : 0;
      const index_t keys = start + rows - first_key;
      const index_t ld = padded(keys);
      const index_t step = rows * ld; // of scores, from head to head
      float* const scores = scores_.reserve(context(), sharing * heads_at_once * block * longest);
      S* weights = nullptr;
      if constexpr (std::is_same_v<S, float>) {
        weights = scores;
      } else {
        weights = attention_weights_.reserve(context(), sharing * heads_at_once * block * longest);
      }
      for (index_t first = 0; first < kv_heads; first += heads_at_once) {
        const index_t count = std::min(heads_at_once, kv_heads - first);
        const S* const keys_here = k + first_key * kv_width + first * head_dim;
        const S* const values_here = v + first_key * kv_width + first * head_dim;
        for (index_t m = 0; m < sharing; ++m)
          cuda::gemm_batch<S, float>(
              context(), op::transpose, op::none, 1.0f, {keys_here, head_dim, keys, kv_width},
              head_dim,
              {q + start * q_width + (first * sharing + m) * head_dim, head_dim, rows, q_width},
              sharing * head_dim, 0.0f, {scores + m * count * step, keys, rows, ld}, step, count);
        launch(a_block_each(rows * count * sharing, keys),
               added_kernel("softmax", {type_name<S>()}), scores, rows, index_t{count * sharing},
               ld, start, first_key, seen, scale, static_cast<float>(config_.attention_cap),
               weights);
        for (index_t m = 0; m < sharing; ++m)
          cuda::gemm_batch<S, float>(
              context(), op::none, op::none, 1.0f, {values_here, head_dim, keys, kv_width},
              head_dim, {weights + m * count * step, keys, rows, ld}, step, 0.0f,
              {out + start * q_width + (first * sharing + m) * head_dim, head_dim, rows, q_width},
              sharing * head_dim, count);
      }
    }
  }

  static index_t padded(index_t count) {
    return (count + score_alignment - 1) / score_alignment * score_alignment;
  }

  model_config config_;
  card_forward_options options_;
  std::shared_ptr<card_state> state_;
  weights_on_card<S> weights_;
  rope_on_card rope_;
  std::optional<rope_on_card> local_rope_;
  card_buffer<S> input_;     // of q, k, v, and of gate and up
  card_buffer<float> outer_; // q, k and v, then the heads; gate and up; outputs behind a norm
  card_buffer<S> stored_;    // the same as products read them
  card_buffer<float> low_rank_, others_;
  card_buffer<S> low_rank_stored_;
  card_buffer<float> scores_;
  card_buffer<S> attention_weights_;
};

} // namespace

std::unique_ptr<forward_engine> make_cuda_forward(const model_config& config, const device& card,
                                                  const card_forward_options& options) {
  switch (precision_of(config, card.options)) {
    case dtype::f16:
      return std::make_unique<cuda_forward<ressvd::half>>(config, card, options);
    case dtype::bf16:
      return std::make_unique<cuda_forward<ressvd::bfloat16>>(config, card, options);
    default:
      return std::make_unique<cuda_forward<float>>(config, card, options);
  }
}

} // namespace ressvd_llm
