// SPDX-License-Identifier: Apache-2.0
#include "model/window_groups.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

namespace ressvd_llm {

std::int64_t windows_of(std::int64_t tokens, std::int64_t window_length) {
  if (window_length < 1 || tokens % window_length != 0)
    throw std::invalid_argument("forward: " + std::to_string(tokens) +
                                " tokens are not whole windows of " +
                                std::to_string(window_length));
  return tokens / window_length;
}

group_size choose_group(std::int64_t row_floats, std::int64_t windows, std::int64_t window_length,
                        std::int64_t threads, const forward_options& options) {
  const std::int64_t own = std::max<std::int64_t>(1, options.private_tokens / window_length);
  const auto bytes = static_cast<std::uint64_t>(own * window_length * row_floats) * sizeof(float);
  const bool enough = (windows + own - 1) / own >= threads;
  if (enough && bytes <= options.private_buffers) return {own, threads};
  return {std::max<std::int64_t>(1, options.shared_tokens / window_length), 1};
}

std::uint64_t group_buffers(std::int64_t row_floats, std::int64_t window_length,
                            std::int64_t threads, const forward_options& options) {
  const group_size group = choose_group(row_floats, std::numeric_limits<std::int32_t>::max(),
                                        window_length, threads, options);
  return static_cast<std::uint64_t>(group.at_a_time * group.windows * window_length * row_floats) *
         sizeof(float);
}

} // namespace ressvd_llm
