// SPDX-License-Identifier: Apache-2.0
//
// The only way the suites touch a backend's memory. Each memory space specialises `memory`;
// the suites call the functions below and run unchanged on any backend.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

namespace support {

/// Specialised for each memory space, with the static members
///   B backend<B>()                                        a backend, on a context that others
///   share std::shared_ptr<U[]> place(B&, const std::vector<U>&) those elements in the space's
///   memory std::vector<U> fetch(B&, const U*, std::size_t count) elements of the space on the
///   host, after
///                                                         everything asked of the backend is done
template <class Space>
struct memory;

template <class B>
B make_backend() {
  return memory<typename B::space>::template backend<B>();
}

template <class U, class B>
std::shared_ptr<U[]> place(B& be, const std::vector<U>& elements) {
  return memory<typename B::space>::place(be, elements);
}

template <class U, class B>
std::vector<U> fetch(B& be, const U* elements, std::size_t count) {
  return memory<typename B::space>::fetch(be, elements, count);
}

} // namespace support
