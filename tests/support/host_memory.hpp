// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "ressvd/core/types.hpp"
#include "support/memory.hpp"

namespace support {

template <>
struct memory<ressvd::host_space> {
  template <class B>
  static B backend() {
    return B{};
  }

  // Exactly as long as asked for: AddressSanitizer then sees any access beyond.
  template <class U, class B>
  static std::shared_ptr<U[]> place(B&, const std::vector<U>& elements) {
    std::shared_ptr<U[]> copy(new U[elements.size()]);
    std::copy(elements.begin(), elements.end(), copy.get());
    return copy;
  }

  template <class U, class B>
  static std::vector<U> fetch(B& be, const U* elements, std::size_t count) {
    be.synchronize();
    return std::vector<U>(elements, elements + count);
  }
};

} // namespace support
