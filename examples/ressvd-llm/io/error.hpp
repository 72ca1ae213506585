// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <stdexcept>
#include <string>
#include <string_view>

namespace ressvd_llm {

// Text from an untrusted file made fit for one line of a message: control characters and bytes
// outside ASCII become \xNN, anything beyond 200 characters is cut.
std::string printable(std::string_view text);

// A file that cannot be read, written or understood. The message is one line,
// "FILE: what" or "FILE: tensor NAME: what"; the program ends with status 2.
class file_error : public std::runtime_error {
 public:
  file_error(const std::filesystem::path& file, std::string_view what);
  file_error(const std::filesystem::path& file, std::string_view tensor, std::string_view what);
};

// A request that cannot be carried out as stated; the program ends with status 2.
class usage_error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A request that was carried out, but not to the extent asked for; the program ends with status 3.
class unmet_request : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

} // namespace ressvd_llm
