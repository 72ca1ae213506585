// SPDX-License-Identifier: Apache-2.0
//
// How the windows of a pass through a layer are grouped.
#pragma once

#include <cstdint>

#include "model/forward.hpp"

namespace ressvd_llm {

struct group_size {
  std::int64_t windows = 1;
  std::int64_t at_a_time = 1; // groups worked on at once, by one thread each
};

// The number of windows. Throws std::invalid_argument unless the tokens are whole ones.
std::int64_t windows_of(std::int64_t tokens, std::int64_t window_length);

// row_floats: of the buffers a token.
group_size choose_group(std::int64_t row_floats, std::int64_t windows, std::int64_t window_length,
                        std::int64_t threads, const forward_options& options);

// Bytes of the buffers of as many groups as are worked on at once, of whatever number of windows.
std::uint64_t group_buffers(std::int64_t row_floats, std::int64_t window_length,
                            std::int64_t threads, const forward_options& options);

} // namespace ressvd_llm
