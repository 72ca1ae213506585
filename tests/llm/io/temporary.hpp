// SPDX-License-Identifier: Apache-2.0
//
// Small files for the tests of readers and writers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <stdlib.h>

#include "io/error.hpp"

namespace llm_test {

/// An empty directory that disappears with the object.
class temporary_directory {
 public:
  temporary_directory() {
    std::string name = (std::filesystem::temp_directory_path() / "ressvd-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary directory");
    path_ = name;
  }
  temporary_directory(const temporary_directory&) = delete;
  temporary_directory& operator=(const temporary_directory&) = delete;
  ~temporary_directory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(std::string_view name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

inline void write(const std::filesystem::path& file, std::string_view content) {
  std::ofstream(file, std::ios::binary)
      .write(content.data(), static_cast<std::streamsize>(content.size()));
}

inline std::string read(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

/// All regular files below a directory with their contents.
inline std::map<std::string, std::string> tree(const std::filesystem::path& directory) {
  std::map<std::string, std::string> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(directory)) {
    if (entry.is_regular_file()) {
      files[entry.path().lexically_relative(directory).string()] = read(entry.path());
    }
  }
  return files;
}

/// The little-endian bytes of numbers.
template <class T>
std::string bytes_of(const std::vector<T>& numbers) {
  std::string bytes(numbers.size() * sizeof(T), '\0');
  if (!numbers.empty()) std::memcpy(bytes.data(), numbers.data(), bytes.size());
  return bytes;
}

/// A safetensors file with this header and these data.
inline std::string safetensors(std::string_view header, std::string_view data) {
  return bytes_of(std::vector<std::uint64_t>{header.size()}) + std::string(header) +
         std::string(data);
}

/// One tensor's entry of a header.
inline std::string entry(std::string_view name, std::string_view type, std::string_view shape,
                         std::uint64_t begin, std::uint64_t end) {
  return "\"" + std::string(name) + "\":{\"dtype\":\"" + std::string(type) +
         "\",\"shape\":" + std::string(shape) + ",\"data_offsets\":[" + std::to_string(begin) +
         "," + std::to_string(end) + "]}";
}

/// The message of the `error` that f throws; another text when it throws none.
template <class error, class F>
std::string message_of(const F& f) {
  try {
    f();
  } catch (const error& caught) {
    const std::string message = caught.what();
    return message.find('\n') == std::string::npos ? message : "more than one line: " + message;
  } catch (const std::exception& caught) {
    return std::string("an exception of another type: ") + caught.what();
  }
  return "no exception";
}

template <class F>
std::string file_error_of(const F& f) {
  return message_of<ressvd_llm::file_error>(f);
}

} // namespace llm_test
