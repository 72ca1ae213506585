// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>

namespace ressvd_llm {

// A regular file mapped read-only for the lifetime of the object. Throws file_error. Moving keeps
// the address. The file must not be shortened by others while it is mapped.
class mapped_file {
 public:
  explicit mapped_file(const std::filesystem::path& file);
  mapped_file(mapped_file&& other) noexcept;
  mapped_file& operator=(mapped_file&& other) noexcept;
  ~mapped_file();

  std::span<const std::byte> bytes() const { return {data_, size_}; }

  // Drops the pages of a part of the mapping from this process's memory; reading them again
  // fetches them again. Keeps the peak memory of a pass over a large file small.
  void release(std::span<const std::byte> part) const;

 private:
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

} // namespace ressvd_llm
