// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string_view>

namespace ressvd_llm {

// A file being written, every step checked: a full disk is a file_error at the write that hits it,
// not a short file.
class output_file {
 public:
  enum class open_mode { replace, append };

  explicit output_file(const std::filesystem::path& file, open_mode mode = open_mode::replace);
  output_file(output_file&& other) noexcept;
  output_file& operator=(output_file&& other) noexcept;
  ~output_file();

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text) { write(std::as_bytes(std::span(text))); }

  // Forces the content to the disk.
  void sync();

  // Must be called to know that the file is complete; the destructor closes without a check.
  void close();

 private:
  std::filesystem::path file_;
  int descriptor_ = -1;
};

// Writes a whole file through a temporary one beside it and a rename: readers see the old content
// or the new, and a failure leaves neither a half file nor the temporary one.
void write_whole_file(const std::filesystem::path& file,
                      const std::function<void(output_file&)>& fill);
void write_whole_file(const std::filesystem::path& file, std::string_view content);

// Throws the file_error that write_whole_file would end in, before there is anything to write.
void require_writable(const std::filesystem::path& file);

} // namespace ressvd_llm
