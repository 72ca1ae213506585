// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace ressvd_llm {

// Floats at a multiple of 64 bytes, not initialised. Vectorised loops treat the elements before the
// first aligned address apart, so that only equal alignment makes equal work give equal bits.
class float_buffer {
 public:
  static constexpr std::size_t alignment = 64;

  // Makes room for at least so many; the content is lost when it must grow.
  void reserve(std::int64_t count) {
    if (count <= size_) return;
    data_.reset();
    data_.reset(static_cast<float*>(::operator new (static_cast<std::size_t>(count) * sizeof(float),
                                                    std::align_val_t{alignment})));
    size_ = count;
  }

  float* data() { return data_.get(); }
  const float* data() const { return data_.get(); }

 private:
  struct release {
    void operator()(float* memory) const {
      ::operator delete (memory, std::align_val_t{alignment});
    }
  };
  std::unique_ptr<float, release> data_;
  std::int64_t size_ = 0;
};

} // namespace ressvd_llm
