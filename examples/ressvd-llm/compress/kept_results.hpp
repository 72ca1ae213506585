// SPDX-License-Identifier: Apache-2.0
//
// Numbers that cost a run through the model each, kept in a file as they are measured, so that a
// resumed run reads them in place of measuring again.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "io/output_file.hpp"

namespace ressvd_llm {

// A line ["NAME", VALUE] for each number. One thread at a time may use it.
class kept_results {
 public:
  // Reads what an interrupted run has left in the file; a last line that it did not finish is
  // dropped. Throws file_error for a damaged file.
  explicit kept_results(std::filesystem::path file);

  // The number of this name: from the file, or else from measure(), and then it is kept. A number
  // that is not finite is returned and not kept.
  double value(const std::string& name, const std::function<double()>& measure);

 private:
  std::size_t read(std::string_view text);

  std::filesystem::path file_;
  std::map<std::string, double, std::less<>> values_;
  std::optional<output_file> out_;
};

} // namespace ressvd_llm
