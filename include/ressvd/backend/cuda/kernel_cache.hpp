// SPDX-License-Identifier: Apache-2.0
//
// Compiled kernels, kept so that none is compiled twice: in memory for the process, and in a folder
// where the caller names one (cuda_options::kernel_cache).
//
// A file holds one kernel and, in front of it, everything its code depends on: the kernel's name,
// the compiler's version and options, a hash of the source. It is written under another name and
// renamed, so that readers find a whole file or none. A file that is damaged, or made from
// something else, is as good as absent. A folder that cannot be read or written costs time and
// nothing else.
//   blocks   the first use of a kernel compiles it, while other threads that want one wait
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "ressvd/backend/cuda/compile_kernel.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {
namespace cuda {

/// FNV-1a, as 16 hexadecimal digits.
inline std::string fingerprint(std::string_view bytes) {
  std::uint64_t hash = 0xcbf29ce484222325;
  for (const char c : bytes)
    hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  char digits[17];
  std::snprintf(digits, sizeof digits, "%016llx", static_cast<unsigned long long>(hash));
  return digits;
}

/// All that a kernel's code depends on, in one line.
inline std::string kernel_key(const std::string& name, int target, bool exact,
                              std::string_view addition = {}) {
  int major = 0;
  int minor = 0;
  check(nvrtcVersion(&major, &minor));
  std::string key =
      text("ressvd kernel 1, NVRTC ", major, ".", minor, ", source ", fingerprint(kernel_source));
  if (!addition.empty()) key += " and " + fingerprint(addition);
  for (const std::string& option : compiler_options(target, exact))
    key += ' ' + option;
  return key + ' ' + name;
}

inline std::filesystem::path kernel_file(const std::string& folder, const std::string& key) {
  return std::filesystem::path(folder) / ("ressvd_" + fingerprint(key) + ".kernel");
}

/// The kernel in a file with the lines: key, fingerprint of the rest, symbol; then its code.
inline std::optional<compiled_kernel> read_kernel(const std::filesystem::path& file,
                                                  const std::string& key) {
  std::ifstream in(file, std::ios::binary);
  std::string found;
  std::string print;
  if (!std::getline(in, found) || found != key || !std::getline(in, print)) return {};
  const std::string rest{std::istreambuf_iterator<char>(in), {}};
  const std::size_t end = rest.find('\n');
  if (fingerprint(rest) != print || end == std::string::npos) return {};
  const auto code = rest.begin() + static_cast<std::ptrdiff_t>(end);
  return compiled_kernel{{rest.begin(), code}, {code + 1, rest.end()}};
}

inline void write_kernel(const std::filesystem::path& file, const std::string& key,
                         const compiled_kernel& kernel) {
  std::error_code ignored;
  std::filesystem::create_directories(file.parent_path(), ignored);
  std::filesystem::path unfinished = file;
  unfinished += text(".", std::random_device{}());
  std::ofstream out(unfinished, std::ios::binary);
  const std::string rest =
      kernel.symbol + '\n' + std::string(kernel.code.begin(), kernel.code.end());
  out << key << '\n' << fingerprint(rest) << '\n' << rest;
  out.close();
  if (out) std::filesystem::rename(unfinished, file, ignored);
  std::filesystem::remove(unfinished, ignored); // where it was not renamed
}

class kernel_cache {
 public:
  /// The kernel from memory, from the folder (unless that is empty) or from the compiler, and kept
  /// in both. The reference is valid as long as the cache.
  const compiled_kernel& get(const std::string& name, int target, bool exact,
                             const std::string& folder, std::string_view addition = {}) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const std::string key = kernel_key(name, target, exact, addition);
    auto kernel = kernels_.find(key);
    if (folder.empty()) {
      if (kernel == kernels_.end())
        kernel = keep(key, compile_kernel(name, target, exact, addition));
      return kernel->second;
    }
    const auto file = kernel_file(folder, key);
    std::error_code ignored;
    if (kernel != kernels_.end()) {
      if (!std::filesystem::exists(file, ignored)) write_kernel(file, key, kernel->second);
      return kernel->second;
    }
    if (auto stored = read_kernel(file, key)) return keep(key, std::move(*stored))->second;
    kernel = keep(key, compile_kernel(name, target, exact, addition));
    write_kernel(file, key, kernel->second);
    return kernel->second;
  }

 private:
  using map = std::map<std::string, compiled_kernel>;
  map::iterator keep(const std::string& key, compiled_kernel kernel) {
    return kernels_.emplace(key, std::move(kernel)).first;
  }

  std::mutex mutex_;
  map kernels_;
};

/// The one of this process.
inline kernel_cache& compiled_kernels() {
  static kernel_cache cache;
  return cache;
}

} // namespace cuda
} // namespace detail
} // namespace v0
} // namespace ressvd
