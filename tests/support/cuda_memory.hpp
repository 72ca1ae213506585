// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <vector>

#include "ressvd/cuda.hpp"
#include "support/memory.hpp"

namespace support {

template <>
struct memory<ressvd::cuda_space> {
  /// On one context for all tests: handles and kernels take a device long. It is never destroyed,
  /// since the libraries may be gone by then.
  template <class B>
  static B backend() {
    static auto& shared =
        *new std::shared_ptr<ressvd::cuda_context>(ressvd::cuda_context::owning());
    return B(shared);
  }

  template <class U, class B>
  static std::shared_ptr<U[]> place(B& be, const std::vector<U>& elements) {
    auto copy = be.context()->template allocate<U>(static_cast<ressvd::index_t>(elements.size()));
    ressvd::detail::cuda::check(cudaMemcpyAsync(copy.get(), elements.data(),
                                                elements.size() * sizeof(U), cudaMemcpyHostToDevice,
                                                be.context()->stream()));
    be.synchronize();
    return copy;
  }

  template <class U, class B>
  static std::vector<U> fetch(B& be, const U* elements, std::size_t count) {
    std::vector<U> copy(count);
    be.context()->read(elements, copy.data(), static_cast<ressvd::index_t>(count));
    return copy;
  }
};

} // namespace support
