// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace ressvd_llm {

// directory/name after the checks an untrusted name needs: a plain file name (no separator, not
// absolute, no ".."), an existing regular file, and, links resolved, still inside the directory.
// Links into the "blobs" directory of the Hugging Face cache that holds the directory
// (…/snapshots/REVISION → …/blobs) are accepted. Throws file_error.
std::filesystem::path file_inside(const std::filesystem::path& directory, std::string_view name);

// The whole content of a small file; throws file_error when it is larger than the limit.
std::string read_text(const std::filesystem::path& file, std::uint64_t limit);

} // namespace ressvd_llm
