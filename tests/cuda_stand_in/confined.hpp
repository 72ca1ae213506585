// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <memory>

#include "support/cuda_backends.hpp"

namespace support {

/// A backend that takes its scratch from a buffer of so many bytes.
template <class B>
struct confined {
  confined(B& owner, std::size_t bytes, ressvd::cuda_options options = {})
      : buffer(owner.context()->template allocate<char>(static_cast<ressvd::index_t>(bytes))),
        backend(context(owner, bytes, options)) {}

  std::shared_ptr<char[]> buffer;
  B backend;

 private:
  std::shared_ptr<ressvd::cuda_context> context(B& owner, std::size_t bytes,
                                                ressvd::cuda_options options) const {
    options.workspace = buffer.get();
    options.workspace_bytes = bytes;
    return ressvd::cuda_context::borrowing({.stream = owner.context()->stream()}, options);
  }
};

} // namespace support
