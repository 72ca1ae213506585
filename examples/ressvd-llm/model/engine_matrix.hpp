// SPDX-License-Identifier: Apache-2.0
//
// Values in the memory of whichever engine computes with them.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "io/dtype.hpp"

namespace ressvd_llm {

enum class memory_space : std::uint8_t { host, cuda };

// What an engine shows of values that it works with: rows × cols, row-major, float32 on the host,
// as its products read them on a card. Work that it has queued may still write them there: read
// them on its stream.
struct activation_view {
  memory_space space = memory_space::host;
  dtype type = dtype::f32;
  const void* data = nullptr;
  std::int64_t rows = 0; // tokens
  std::int64_t cols = 0; // features

  // Throws std::logic_error unless these are floats on the host.
  const float* host() const;
};

// Σ(a − b)² and Σa².
struct square_sums {
  double difference = 0;
  double reference = 0;
};

// The values behind an engine_matrix, and what is computed where they lie. `other` is of the same
// engine's kind and size.
class matrix_storage {
 public:
  virtual ~matrix_storage() = default;

  virtual memory_space space() const = 0;
  virtual float* data() = 0;
  virtual std::unique_ptr<matrix_storage> copy(std::int64_t first, std::int64_t count) const = 0;
  virtual void read(std::int64_t first, std::span<float> values) const = 0;
  virtual square_sums compare(const matrix_storage& other) const = 0;
  // Of rows of logits, as next_token_losses and kl_divergences of model/evaluation.hpp.
  virtual std::vector<double> losses(std::span<const std::int32_t> targets,
                                     std::int64_t cols) const = 0;
  virtual std::vector<double> divergences(const matrix_storage& other, std::int64_t rows,
                                          std::int64_t cols) const = 0;
};

// rows × cols floats, row-major, in an engine's memory: hidden states (a row a token) or logits.
// Copies are copies. Members that read values throw std::runtime_error where the engine has found
// that they are not finite.
class engine_matrix {
 public:
  engine_matrix() = default;
  engine_matrix(std::unique_ptr<matrix_storage> storage, std::int64_t rows, std::int64_t cols)
      : storage_(std::move(storage)), rows_(rows), cols_(cols) {}
  engine_matrix(const engine_matrix& other) { *this = other.part(0, other.rows_); }
  engine_matrix& operator=(const engine_matrix& other) {
    return *this = other.part(0, other.rows_);
  }
  engine_matrix(engine_matrix&& other) noexcept { *this = std::move(other); }
  engine_matrix& operator=(engine_matrix&& other) noexcept {
    storage_ = std::move(other.storage_);
    rows_ = std::exchange(other.rows_, 0);
    cols_ = std::exchange(other.cols_, 0);
    return *this;
  }
  ~engine_matrix() = default;

  std::int64_t rows() const { return rows_; }
  std::int64_t cols() const { return cols_; }
  std::int64_t size() const { return rows_ * cols_; }
  bool empty() const { return storage_ == nullptr; }
  void clear() { *this = {}; }

  // A copy of some rows.
  engine_matrix part(std::int64_t first, std::int64_t count) const;
  // All values on the host.
  std::vector<float> values() const;

  memory_space space() const { return storage_->space(); }
  // Throw std::logic_error unless the values lie on the host.
  float* data();
  const float* data() const { return const_cast<engine_matrix*>(this)->data(); }

  // For the engine that made it.
  matrix_storage* storage() const { return storage_.get(); }

 private:
  std::unique_ptr<matrix_storage> storage_;
  std::int64_t rows_ = 0;
  std::int64_t cols_ = 0;
};

// Values on the host.
engine_matrix host_matrix(std::vector<float> values, std::int64_t cols);

square_sums compare(const engine_matrix& a, const engine_matrix& b);

} // namespace ressvd_llm
