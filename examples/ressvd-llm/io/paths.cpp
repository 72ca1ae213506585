// SPDX-License-Identifier: Apache-2.0
#include "io/paths.hpp"

#include <algorithm>
#include <system_error>

#include "io/error.hpp"
#include "io/mapped_file.hpp"

namespace ressvd_llm {
namespace {

bool lies_in(const std::filesystem::path& file, const std::filesystem::path& directory) {
  return std::mismatch(directory.begin(), directory.end(), file.begin(), file.end()).first ==
         directory.end();
}

} // namespace

std::filesystem::path file_inside(const std::filesystem::path& directory, std::string_view name) {
  if (name.empty() || name == "." || name == ".." ||
      name.find_first_of(std::string_view("/\\\0", 3)) != std::string_view::npos) {
    throw file_error(directory, "'" + printable(name) + "' is not a plain file name");
  }
  std::error_code error;
  const std::filesystem::path root = std::filesystem::canonical(directory, error);
  if (error || !std::filesystem::is_directory(root, error)) {
    throw file_error(directory, "no such directory");
  }
  std::filesystem::path file = directory / name;
  const std::filesystem::path target = std::filesystem::canonical(file, error);
  if (error) throw file_error(file, "no such file");
  const bool in_cache = root.parent_path().filename() == "snapshots" &&
                        lies_in(target, root.parent_path().parent_path() / "blobs");
  if (!lies_in(target, root) && !in_cache) {
    throw file_error(file, "is a symbolic link out of the model directory, to '" +
                               printable(target.string()) +
                               "'; replace it by a copy of the file (cp -L) or a hard link");
  }
  if (!std::filesystem::is_regular_file(target, error)) {
    throw file_error(file, "is not a regular file");
  }
  return file;
}

std::string read_text(const std::filesystem::path& file, std::uint64_t limit) {
  const mapped_file content(file);
  if (content.bytes().size() > limit) {
    throw file_error(file, "has " + std::to_string(content.bytes().size()) +
                               " bytes, more than the limit of " + std::to_string(limit));
  }
  return {reinterpret_cast<const char*>(content.bytes().data()), content.bytes().size()};
}

} // namespace ressvd_llm
