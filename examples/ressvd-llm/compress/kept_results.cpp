// SPDX-License-Identifier: Apache-2.0
#include "compress/kept_results.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>

#include <nlohmann/json.hpp>

#include "compress/resume.hpp"
#include "io/paths.hpp"

namespace ressvd_llm {
namespace {

constexpr std::uint64_t largest_file = std::uint64_t{1} << 32;

} // namespace

kept_results::kept_results(std::filesystem::path file) : file_(std::move(file)) {
  if (std::filesystem::exists(file_)) {
    const std::size_t whole = read(read_text(file_, largest_file));
    std::filesystem::resize_file(file_, whole);
  }
  out_.emplace(file_, output_file::open_mode::append);
}

// Returns the length of the complete lines.
std::size_t kept_results::read(std::string_view text) {
  std::size_t begin = 0;
  for (std::size_t end = text.find('\n'); end != text.npos; end = text.find('\n', begin)) {
    try {
      const auto line = nlohmann::json::parse(text.substr(begin, end - begin));
      values_.insert_or_assign(line.at(0).get<std::string>(), line.at(1).get<double>());
    } catch (const nlohmann::json::exception&) {
      fail_damaged(file_);
    }
    begin = end + 1;
  }
  return begin;
}

double kept_results::value(const std::string& name, const std::function<double()>& measure) {
  if (const auto found = values_.find(name); found != values_.end()) return found->second;
  const double measured = measure();
  if (std::isfinite(measured)) {
    out_->write(nlohmann::json{name, measured}.dump() + "\n");
    values_.emplace(name, measured);
  }
  return measured;
}

} // namespace ressvd_llm
