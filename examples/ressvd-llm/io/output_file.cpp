// SPDX-License-Identifier: Apache-2.0
#include "io/output_file.hpp"

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <unistd.h>

#include "io/error.hpp"

namespace ressvd_llm {
namespace {

[[noreturn]] void fail(const std::filesystem::path& file) {
  throw file_error(file, "cannot be written: " + std::generic_category().message(errno));
}

std::filesystem::path temporary_of(std::filesystem::path file) {
  return file += ".tmp";
}

} // namespace

output_file::output_file(const std::filesystem::path& file, open_mode mode)
    : file_(file),
      descriptor_(
          ::open(file.c_str(),
                 O_WRONLY | O_CREAT | O_CLOEXEC | (mode == open_mode::append ? O_APPEND : O_TRUNC),
                 0666)) {
  if (descriptor_ < 0) fail(file_);
}

output_file::output_file(output_file&& other) noexcept
    : file_(std::move(other.file_)), descriptor_(std::exchange(other.descriptor_, -1)) {}

output_file& output_file::operator=(output_file&& other) noexcept {
  std::swap(file_, other.file_);
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

output_file::~output_file() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void output_file::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
    if (written < 0) {
      if (errno == EINTR) continue;
      fail(file_);
    }
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
}

void output_file::sync() {
  if (::fsync(descriptor_) != 0) fail(file_);
}

void output_file::close() {
  if (::close(std::exchange(descriptor_, -1)) != 0) fail(file_);
}

namespace {

// A terminal, a pipe, /dev/null: what cannot be replaced.
bool is_special(const std::filesystem::path& file) {
  return std::filesystem::exists(file) && !std::filesystem::is_regular_file(file);
}

// Behind a link the file is replaced, not the link.
std::filesystem::path target_of(const std::filesystem::path& file) {
  return std::filesystem::is_symlink(file) ? std::filesystem::weakly_canonical(file) : file;
}

} // namespace

void write_whole_file(const std::filesystem::path& given,
                      const std::function<void(output_file&)>& fill) {
  if (is_special(given)) {
    output_file out(given);
    fill(out);
    return out.close();
  }
  const std::filesystem::path file = target_of(given);
  const std::filesystem::path temporary = temporary_of(file);
  try {
    output_file out(temporary);
    fill(out);
    out.sync();
    out.close();
    std::error_code error;
    std::filesystem::rename(temporary, file, error);
    if (error) throw file_error(file, "cannot be written: " + error.message());
  } catch (...) {
    std::error_code ignored;
    std::filesystem::remove(temporary, ignored);
    throw;
  }
}

void write_whole_file(const std::filesystem::path& file, std::string_view content) {
  write_whole_file(file, [&](output_file& out) { out.write(content); });
}

void require_writable(const std::filesystem::path& file) {
  if (std::filesystem::is_directory(file)) {
    throw file_error(file, "cannot be written: " + std::generic_category().message(EISDIR));
  }
  if (is_special(file)) return output_file(file).close();
  const std::filesystem::path temporary = temporary_of(target_of(file));
  output_file(temporary).close();
  std::filesystem::remove(temporary);
}

} // namespace ressvd_llm
