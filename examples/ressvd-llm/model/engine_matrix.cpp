// SPDX-License-Identifier: Apache-2.0
#include "model/engine_matrix.hpp"

#include <algorithm>
#include <stdexcept>

#include "model/evaluation.hpp"

namespace ressvd_llm {

namespace {

class host_storage final : public matrix_storage {
 public:
  host_storage(std::vector<float> values, std::int64_t cols)
      : values_(std::move(values)), cols_(cols) {}

  memory_space space() const override { return memory_space::host; }
  float* data() override { return values_.data(); }

  std::unique_ptr<matrix_storage> copy(std::int64_t first, std::int64_t count) const override {
    const auto start = values_.begin() + first * cols_;
    return std::make_unique<host_storage>(std::vector<float>(start, start + count * cols_), cols_);
  }

  void read(std::int64_t first, std::span<float> values) const override {
    std::copy_n(values_.begin() + first * cols_, values.size(), values.begin());
  }

  square_sums compare(const matrix_storage& other) const override {
    square_sums sums;
    const std::vector<float>& others = values_of(other);
    for (std::size_t i = 0; i < values_.size(); ++i) {
      const double x = values_[i];
      const double d = x - static_cast<double>(others[i]);
      sums.difference += d * d;
      sums.reference += x * x;
    }
    return sums;
  }

  std::vector<double> losses(std::span<const std::int32_t> targets,
                             std::int64_t cols) const override {
    return next_token_losses(values_.data(), targets, cols);
  }

  std::vector<double> divergences(const matrix_storage& other, std::int64_t rows,
                                  std::int64_t cols) const override {
    return kl_divergences(values_.data(), values_of(other).data(), rows, cols);
  }

 private:
  static const std::vector<float>& values_of(const matrix_storage& other) {
    if (other.space() != memory_space::host)
      throw std::logic_error("matrices of two engines cannot be compared");
    return static_cast<const host_storage&>(other).values_;
  }

  std::vector<float> values_;
  std::int64_t cols_;
};

} // namespace

const float* activation_view::host() const {
  if (space != memory_space::host || type != dtype::f32)
    throw std::logic_error("activations are read on the host, but lie on a card");
  return static_cast<const float*>(data);
}

engine_matrix engine_matrix::part(std::int64_t first, std::int64_t count) const {
  if (empty()) return {};
  if (first < 0 || count < 0 || first > rows_ - count)
    throw std::invalid_argument("a part that is not within a matrix");
  return {storage_->copy(first, count), count, cols_};
}

std::vector<float> engine_matrix::values() const {
  std::vector<float> result(static_cast<std::size_t>(size()));
  if (!empty()) storage_->read(0, result);
  return result;
}

float* engine_matrix::data() {
  if (empty()) return nullptr;
  if (space() != memory_space::host)
    throw std::logic_error("a matrix is read on the host, but lies on a card");
  return storage_->data();
}

engine_matrix host_matrix(std::vector<float> values, std::int64_t cols) {
  const std::int64_t rows = cols == 0 ? 0 : static_cast<std::int64_t>(values.size()) / cols;
  return {std::make_unique<host_storage>(std::move(values), cols), rows, cols};
}

square_sums compare(const engine_matrix& a, const engine_matrix& b) {
  if (a.rows() != b.rows() || a.cols() != b.cols())
    throw std::invalid_argument("matrices of two sizes are compared");
  return a.empty() ? square_sums{} : a.storage()->compare(*b.storage());
}

} // namespace ressvd_llm
