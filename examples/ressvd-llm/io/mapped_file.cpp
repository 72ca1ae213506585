// SPDX-License-Identifier: Apache-2.0
#include "io/mapped_file.hpp"

#include <cerrno>
#include <cstdint>
#include <string>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/error.hpp"

namespace ressvd_llm {

mapped_file::mapped_file(const std::filesystem::path& file) {
  // Without O_NONBLOCK, opening a named pipe would wait for a writer.
  const int descriptor = ::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) {
    throw file_error(file, "cannot be opened: " + std::generic_category().message(errno));
  }
  const auto fail = [&](const std::string& what) {
    ::close(descriptor);
    throw file_error(file, what);
  };
  struct stat status {};
  if (::fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode)) fail("is not a regular file");
  size_ = static_cast<std::size_t>(status.st_size);
  if (size_ > 0) {
    void* const address = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, descriptor, 0);
    if (address == MAP_FAILED) {
      fail("cannot be mapped: " + std::generic_category().message(errno));
    }
    data_ = static_cast<const std::byte*>(address);
  }
  ::close(descriptor);
}

mapped_file::mapped_file(mapped_file&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

mapped_file& mapped_file::operator=(mapped_file&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

mapped_file::~mapped_file() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

void mapped_file::release(std::span<const std::byte> part) const {
  if (part.empty()) return;
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  // The page in which the part begins is the first.
  const std::size_t before = reinterpret_cast<std::uintptr_t>(part.data()) % page;
  // Advice only: a refusal changes nothing but the memory in use.
  ::madvise(const_cast<std::byte*>(part.data()) - before, before + part.size(), MADV_DONTNEED);
}

} // namespace ressvd_llm
