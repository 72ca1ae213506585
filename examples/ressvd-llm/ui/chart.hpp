// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

namespace ressvd_llm {

struct chart_line {
  std::string label;
  std::vector<double> x;
  std::vector<double> y;
  bool dashed = false;
};

// Lines over common axes.
struct chart {
  std::string title;
  std::string x_label;
  std::string y_label;
  bool log_y = false;       // every y must then be positive
  bool y_from_zero = false; // the axis begins at zero, not at the smallest y
  std::vector<chart_line> lines;
};

// The chart as an SVG document of its own: axes with round ticks, markers, a legend; text is
// escaped. Throws std::invalid_argument, naming the line, for x and y of different lengths, for a
// value that is not finite, and for a y on a logarithmic axis that is not positive; and for a
// chart without any point.
std::string to_svg(const chart& picture);

// Round numbers (1, 2 or 5 times a power of ten apart) that enclose [low, high], ascending.
// Logarithmic: 1, 2 and 5 times powers of ten, or powers of ten alone where those would be many.
// Throws std::invalid_argument unless low <= high, both finite and, where logarithmic, positive.
std::vector<double> linear_ticks(double low, double high);
std::vector<double> log_ticks(double low, double high);

} // namespace ressvd_llm
