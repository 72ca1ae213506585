// SPDX-License-Identifier: Apache-2.0
//
// Scratch memory with stack discipline. A kernel opens a frame, takes blocks, and everything goes
// back when the frame closes; the chunks stay for the next kernel. An engine can give a buffer of
// its own: the workspace then allocates nothing, and a kernel that needs more says how much.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "ressvd/core/error.hpp"
#include "ressvd/core/types.hpp"

namespace ressvd {
inline namespace v0 {

/// A stack of chunks. Memory is a class with `void* allocate(std::size_t bytes)` and
/// `void deallocate(void*, std::size_t bytes) noexcept`.
///
/// Not thread-safe: one workspace belongs to one context, one context to one thread at a time.
template <class Memory>
class workspace {
 public:
  /// Every block starts at a multiple of this, which suits cache lines and the vectorised paths of
  /// cuBLAS.
  static constexpr std::size_t alignment = 256;

  explicit workspace(Memory memory = {}) : memory_(std::move(memory)) {}

  /// Uses only the caller's buffer, which must outlive this object.
  workspace(void* buffer, std::size_t bytes, Memory memory = {})
      : memory_(std::move(memory)), fixed_(true) {
    chunks_.push_back({static_cast<std::byte*>(buffer), bytes});
  }

  workspace(const workspace&) = delete;
  workspace& operator=(const workspace&) = delete;
  ~workspace() { release(); }

  struct position {
    std::size_t chunk = 0;
    std::size_t offset = 0;
    std::size_t used = 0;
  };

  position mark() const { return here_; }

  void rewind(position p) noexcept {
    here_ = p;
    // An emptied stack of several chunks is given back; the next one fits the same demand at once.
    if (here_.used == 0 && chunks_.size() > 1) {
      for (const auto& c : chunks_)
        next_chunk_ += c.bytes;
      release();
    }
  }

  /// Bytes valid until the enclosing frame closes.
  void* take(std::size_t bytes) {
    const std::size_t rounded = (bytes + alignment - 1) / alignment * alignment;
    while (here_.chunk < chunks_.size()) {
      const chunk& c = chunks_[here_.chunk];
      const std::size_t start = aligned_offset(c, here_.offset);
      if (start + rounded <= c.bytes) {
        here_.offset = start + rounded;
        here_.used += rounded;
        peak_ = (std::max)(peak_, here_.used);
        return c.data + start;
      }
      if (here_.chunk + 1 == chunks_.size()) break;
      ++here_.chunk;
      here_.offset = 0;
    }
    if (fixed_) {
      detail::fail<workspace_error>("the workspace of ", chunks_[0].bytes,
                                    " bytes is too small: ", here_.used + rounded,
                                    " bytes are needed here");
    }
    const std::size_t last = chunks_.empty() ? std::exchange(next_chunk_, 0) : chunks_.back().bytes;
    add_chunk((std::max)(rounded, chunks_.empty() ? last : 2 * last));
    here_.chunk = chunks_.size() - 1;
    here_.offset = 0;
    return take(bytes);
  }

  /// The most bytes that were in use at once so far.
  std::size_t peak() const { return peak_; }
  void reset_peak() { peak_ = here_.used; }

 private:
  struct chunk {
    std::byte* data;
    std::size_t bytes;
  };

  static std::size_t aligned_offset(const chunk& c, std::size_t offset) {
    const auto address = reinterpret_cast<std::uintptr_t>(c.data) + offset;
    return offset + (alignment - address % alignment) % alignment;
  }

  void add_chunk(std::size_t bytes) {
    const std::size_t padded = bytes + alignment;
    chunks_.push_back({static_cast<std::byte*>(memory_.allocate(padded)), padded});
  }

  void release() noexcept {
    if (!fixed_) {
      for (const auto& c : chunks_)
        memory_.deallocate(c.data, c.bytes);
      chunks_.clear();
    }
  }

  Memory memory_;
  bool fixed_ = false;
  std::vector<chunk> chunks_;
  position here_;
  std::size_t next_chunk_ = 0;
  std::size_t peak_ = 0;
};

/// Rewinds a workspace to where it stood. Frames nest like the calls that open them.
template <class Memory>
class workspace_frame {
 public:
  explicit workspace_frame(workspace<Memory>& w) : workspace_(w), start_(w.mark()) {}
  workspace_frame(const workspace_frame&) = delete;
  workspace_frame& operator=(const workspace_frame&) = delete;
  ~workspace_frame() { workspace_.rewind(start_); }

 private:
  workspace<Memory>& workspace_;
  typename workspace<Memory>::position start_;
};

} // namespace v0
} // namespace ressvd
