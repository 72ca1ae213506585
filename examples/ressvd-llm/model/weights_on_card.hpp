// SPDX-License-Identifier: Apache-2.0
//
// Weights on their way to a card and there: read from where they lie on the host, through pinned
// memory, on a stream of their own, in the type in which products read their factors. Matrices of
// mapped checkpoints stay on the card as far as a budget goes, the first that are used; others are
// there as long as their layer is, and so is the layer that is announced.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include <ressvd/cuda.hpp>

#include "model/layer.hpp"
#include "model/parallel.hpp"

namespace ressvd_llm {

template <class S>
constexpr dtype stored_type() {
  if constexpr (std::is_same_v<S, float>) {
    return dtype::f32;
  } else if constexpr (std::is_same_v<S, ressvd::half>) {
    return dtype::f16;
  } else {
    return dtype::bf16;
  }
}

// A point in a stream's work.
class cuda_event {
 public:
  cuda_event() {
    ressvd::detail::cuda::check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming));
  }
  cuda_event(const cuda_event&) = delete;
  cuda_event& operator=(const cuda_event&) = delete;
  ~cuda_event() { cudaEventDestroy(event_); }

  void record(cudaStream_t stream) { ressvd::detail::cuda::check(cudaEventRecord(event_, stream)); }
  // The stream goes on when the point is passed; the host likewise.
  void hold(cudaStream_t stream) const {
    ressvd::detail::cuda::check(cudaStreamWaitEvent(stream, event_, 0));
  }
  void wait() const { ressvd::detail::cuda::check(cudaEventSynchronize(event_)); }

 private:
  cudaEvent_t event_ = nullptr;
};

template <class S>
struct matrix_on_card {
  std::shared_ptr<S[]> data;
  std::int64_t rows = 0;
  std::int64_t cols = 0;

  bool empty() const { return data == nullptr; }
};

template <class S>
struct linear_on_card {
  matrix_on_card<S> dense, u, v, c, z;
  std::shared_ptr<std::int32_t[]> places; // of a pivoted matrix: where each row of the output lies
  std::shared_ptr<float[]> bias;
  std::int64_t out = 0;
  std::int64_t rank = 0;
};

struct norm_on_card {
  std::shared_ptr<float[]> scale;
  std::shared_ptr<float[]> shift;
};

template <class S>
struct layer_on_card {
  std::array<linear_on_card<S>, projection_count> linears;
  norm_on_card attention_norm, mlp_norm, attention_post_norm, mlp_post_norm;
  std::shared_ptr<float[]> q_norm, k_norm;

  const linear_on_card<S>& operator[](projection kind) const {
    return linears[static_cast<std::size_t>(kind)];
  }
};

template <class S>
class weights_on_card {
 public:
  using context_pointer = std::shared_ptr<ressvd::cuda_context>;

  // Matrices of so many bytes may stay.
  weights_on_card(context_pointer context, std::uint64_t budget)
      : context_(std::move(context)), budget_(budget) {
    ressvd::detail::cuda::check(cudaStreamCreateWithFlags(&copies_, cudaStreamNonBlocking));
  }
  weights_on_card(const weights_on_card&) = delete;
  weights_on_card& operator=(const weights_on_card&) = delete;
  ~weights_on_card() {
    cudaStreamSynchronize(copies_); // they write what is released here
    for (const piece& p : pieces_)
      cudaFreeHost(p.memory);
    cudaStreamDestroy(copies_);
  }

  std::uint64_t resident_bytes() const { return resident_bytes_; }

  // The layer's weights, in the order of the context's stream.
  layer_on_card<S> layer(const layer_weights& weights) {
    for (auto* const slot : {&this_, &next_}) {
      if (*slot == nullptr || !(*slot)->matches(weights)) continue;
      if (slot == &next_) fetch_next();
      (*slot)->arrived.hold(context_->stream());
      return std::move(std::exchange(*slot, nullptr)->weights);
    }
    drop(this_);
    layer_on_card<S> result = place_or_make_room(weights);
    bring();
    return result;
  }

  // Makes room for the layer after the next call of layer(); fetch_next() brings what belongs there
  // once that call's work is queued.
  void announce(const layer_weights& weights) {
    if (next_ != nullptr && next_->matches(weights)) return;
    fetch_next();
    drop(this_);
    this_ = std::exchange(next_, nullptr);
    auto next = std::make_unique<announced>(weights);
    next->weights = place_or_make_room(weights);
    next->room.record(context_->stream());
    next->arrivals = std::exchange(arrivals_, {});
    next_ = std::move(next);
  }
  void fetch_next() {
    if (next_ == nullptr || next_->fetched) return;
    next_->room.hold(copies_);
    for (const arrival& a : next_->arrivals)
      copy(a);
    next_->arrivals = {};
    next_->arrived.record(copies_);
    next_->fetched = true;
  }

  // A matrix that is no layer's: it stays, or is there until another one is asked for.
  matrix_on_card<S> matrix(const weight_matrix& m) {
    if (m.empty()) return {};
    if (held_source_.identity() != m.identity() || held_.empty()) {
      held_ = {};
      held_ = place_or_make_room(m);
      held_source_ = m;
      bring();
    }
    return held_;
  }
  void release_matrix() {
    held_ = {};
    held_source_ = {};
  }

  template <class T>
  std::shared_ptr<T[]> vector(std::vector<T> values) {
    auto result = place(std::move(values));
    bring();
    return result;
  }
  norm_on_card norm(const norm_weights& norm) {
    norm_on_card result = place(norm);
    bring();
    return result;
  }

 private:
  // Rows of values that are to be copied to the card.
  struct arrival {
    std::shared_ptr<void> to;
    std::int64_t rows = 0;
    std::size_t row_bytes = 0;
    std::function<void(std::int64_t first, std::int64_t count, std::byte* to)> fill;
  };

  struct announced {
    explicit announced(const layer_weights& layer) : source(layer) {}

    // Whether the layer reads the same values as the one that was announced.
    bool matches(const layer_weights& other) const {
      if (source.index != other.index) return false;
      for (std::size_t i = 0; i < projection_count; ++i) {
        const linear& a = source.linears[i];
        const linear& b = other.linears[i];
        for (const auto member : {&linear::dense, &linear::u, &linear::v, &linear::c, &linear::z})
          if ((a.*member).identity() != (b.*member).identity()) return false;
      }
      return source.attention_norm.scale == other.attention_norm.scale &&
             source.mlp_norm.scale == other.mlp_norm.scale;
    }

    layer_weights source; // keeps the values alive
    layer_on_card<S> weights;
    std::vector<arrival> arrivals;
    cuda_event room;
    cuda_event arrived;
    bool fetched = false;
  };

  struct piece {
    std::byte* memory = nullptr;
    std::size_t bytes = 0;
    std::unique_ptr<cuda_event> copied = std::make_unique<cuda_event>();
  };
  static constexpr std::size_t piece_bytes = std::size_t{16} << 20;

  // Where there is no room, nothing stays any more.
  template <class Weights>
  auto place_or_make_room(const Weights& weights) {
    try {
      return place(weights);
    } catch (const ressvd::workspace_error&) {
      arrivals_ = {};
      resident_.clear();
      resident_bytes_ = 0;
      budget_ = 0;
      drop(this_);
      context_->synchronize(); // so that what is released is free
    } catch (...) {
      arrivals_ = {};
      resident_.clear();
      throw;
    }
    return place(weights);
  }

  layer_on_card<S> place(const layer_weights& weights) {
    layer_on_card<S> result;
    for (std::size_t i = 0; i < projection_count; ++i)
      result.linears[i] = place(weights.linears[i]);
    result.attention_norm = place(weights.attention_norm);
    result.mlp_norm = place(weights.mlp_norm);
    result.attention_post_norm = place(weights.attention_post_norm);
    result.mlp_post_norm = place(weights.mlp_post_norm);
    result.q_norm = place(weights.q_norm);
    result.k_norm = place(weights.k_norm);
    return result;
  }

  linear_on_card<S> place(const linear& l) {
    linear_on_card<S> result;
    if (l.empty()) return result;
    result.out = l.out();
    result.rank = l.rank();
    result.dense = place(l.dense);
    result.u = place(l.u);
    result.v = place(l.v);
    result.c = place(l.c);
    result.z = place(l.z);
    result.bias = place(l.bias);
    if (l.pivoted()) {
      std::vector<std::int32_t> places(l.order.size());
      for (std::size_t i = 0; i < l.order.size(); ++i)
        places[static_cast<std::size_t>(l.order[i])] = static_cast<std::int32_t>(i);
      result.places = place(std::move(places));
    }
    return result;
  }

  norm_on_card place(const norm_weights& norm) { return {place(norm.scale), place(norm.shift)}; }

  // Values are copied: they are read when their turn comes.
  template <class T>
  std::shared_ptr<T[]> place(std::vector<T> values) {
    if (values.empty()) return nullptr;
    const auto count = static_cast<std::int64_t>(values.size());
    auto result = context_->template allocate<T>(count);
    arrivals_.push_back({.to = result,
                         .rows = count,
                         .row_bytes = sizeof(T),
                         .fill = [values = std::move(values)](std::int64_t first, std::int64_t rows,
                                                              std::byte* to) {
                           std::memcpy(to, values.data() + first,
                                       static_cast<std::size_t>(rows) * sizeof(T));
                         }});
    return result;
  }

  matrix_on_card<S> place(const weight_matrix& m) {
    if (m.empty()) return {};
    const bool may_stay = m.mapped() != nullptr;
    if (may_stay) {
      const auto found = resident_.find(m.identity());
      if (found != resident_.end()) {
        if (is_pending(found->second.data)) {
          fetch_next();
          next_->arrived.hold(context_->stream());
        }
        return found->second;
      }
    }
    const std::uint64_t bytes = static_cast<std::uint64_t>(m.rows() * m.cols()) * sizeof(S);
    matrix_on_card<S> result{context_->template allocate<S>(m.rows() * m.cols()), m.rows(),
                             m.cols()};
    arrivals_.push_back({.to = result.data,
                         .rows = m.rows(),
                         .row_bytes = static_cast<std::size_t>(m.cols()) * sizeof(S),
                         .fill = [m](std::int64_t first, std::int64_t rows, std::byte* to) {
                           convert(m, first, rows, to);
                         }});
    if (may_stay && resident_bytes_ + bytes <= budget_) {
      resident_bytes_ += bytes;
      resident_.emplace(m.identity(), result);
    }
    return result;
  }

  // Rows of the matrix as the card's products read them.
  static void convert(const weight_matrix& m, std::int64_t first, std::int64_t rows,
                      std::byte* to) {
    constexpr dtype type = stored_type<S>();
    const std::size_t row_bytes = static_cast<std::size_t>(m.cols()) * sizeof(S);
    const std::int64_t grain = std::max<std::int64_t>(1, 65'536 / m.cols());
    parallel_for(rows, grain, [&](std::int64_t begin, std::int64_t end) {
      std::vector<float> values(m.in_memory() ? 0 : static_cast<std::size_t>(m.cols()));
      for (std::int64_t row = begin; row < end; ++row) {
        std::byte* const out = to + static_cast<std::size_t>(row) * row_bytes;
        if (m.mapped() != nullptr && m.mapped()->type == type) {
          std::memcpy(out, m.mapped()->row(first + row), row_bytes);
        } else {
          const float* const read = m.read_rows(first + row, 1, values.data());
          encode({read, static_cast<std::size_t>(m.cols())}, type, out);
        }
      }
    });
  }

  bool is_pending(const std::shared_ptr<void>& data) const {
    return next_ != nullptr &&
           std::ranges::any_of(next_->arrivals, [&](const arrival& a) { return a.to == data; });
  }

  // Copies what has its place by now; the context's stream goes on when it is there.
  void bring() {
    if (arrivals_.empty()) return;
    room_.record(context_->stream());
    room_.hold(copies_);
    for (const arrival& a : arrivals_)
      copy(a);
    arrivals_ = {};
    arrived_.record(copies_);
    arrived_.hold(context_->stream());
  }

  void copy(const arrival& a) {
    const auto rows_at_once =
        std::max<std::int64_t>(1, static_cast<std::int64_t>(piece_bytes / a.row_bytes));
    for (std::int64_t first = 0; first < a.rows; first += rows_at_once) {
      const std::int64_t rows = std::min(rows_at_once, a.rows - first);
      const std::size_t bytes = static_cast<std::size_t>(rows) * a.row_bytes;
      piece& p = free_piece(bytes);
      a.fill(first, rows, p.memory);
      std::byte* const to =
          static_cast<std::byte*>(a.to.get()) + static_cast<std::size_t>(first) * a.row_bytes;
      ressvd::detail::cuda::check(
          cudaMemcpyAsync(to, p.memory, bytes, cudaMemcpyHostToDevice, copies_));
      p.copied->record(copies_);
    }
  }

  // Pinned memory that no copy reads any more: two pieces in turn.
  piece& free_piece(std::size_t bytes) {
    piece& p = pieces_[turn_];
    turn_ = 1 - turn_;
    p.copied->wait();
    if (p.bytes < bytes) {
      cudaFreeHost(std::exchange(p.memory, nullptr));
      p.bytes = 0;
      void* memory = nullptr;
      const std::size_t room = std::max(bytes, std::min(piece_bytes, 2 * bytes));
      ressvd::detail::cuda::check(cudaMallocHost(&memory, room));
      p.memory = static_cast<std::byte*>(memory);
      p.bytes = room;
    }
    return p;
  }

  // Of a layer that has been fetched and is not used.
  void drop(std::unique_ptr<announced>& layer) {
    if (layer == nullptr) return;
    layer->arrived.hold(context_->stream());
    layer.reset();
  }

  context_pointer context_;
  std::uint64_t budget_;
  cudaStream_t copies_ = nullptr;
  std::array<piece, 2> pieces_;
  std::size_t turn_ = 0;
  cuda_event room_;
  cuda_event arrived_;
  std::map<const void*, matrix_on_card<S>> resident_;
  std::uint64_t resident_bytes_ = 0;
  std::vector<arrival> arrivals_;   // of what is being placed
  std::unique_ptr<announced> this_; // announced, and fetched
  std::unique_ptr<announced> next_;
  weight_matrix held_source_;
  matrix_on_card<S> held_;
};

} // namespace ressvd_llm
