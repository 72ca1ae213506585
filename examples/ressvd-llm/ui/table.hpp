// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ressvd_llm {

// Rows of cells as lines of aligned columns, the first `left` columns to the left, the others to
// the right. Rows may end early.
std::string to_text(const std::vector<std::vector<std::string>>& rows, std::size_t left = 1);

// A number in a cell.
std::string cell(std::int64_t value);
std::string cell(double value, int decimals);

} // namespace ressvd_llm
