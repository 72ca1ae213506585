// SPDX-License-Identifier: Apache-2.0
#include "ui/chart.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <stdexcept>

namespace ressvd_llm {
namespace {

constexpr double plot_width = 560;
constexpr double plot_height = 340;
constexpr double left = 80;
constexpr double top = 50;
constexpr double below = 60;
constexpr double character_width = 7;
constexpr double legend_step = 20;

// Okabe and Ito's colours, told apart by colour-blind readers as well.
constexpr std::array<const char*, 8> colours = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                                "#e69f00", "#56b4e9", "#000000", "#999933"};

std::string number(double value, const char* format = "%.2f") {
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), format, value);
  return text.data();
}

std::string escaped(const std::string& text) {
  std::string result;
  for (const char c : text) {
    switch (c) {
      case '&':
        result += "&amp;";
        break;
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      case '"':
        result += "&quot;";
        break;
      default:
        // XML knows no other control characters.
        result += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
  }
  return result;
}

void check(const chart& picture) {
  bool any = false;
  for (const chart_line& line : picture.lines) {
    const auto refuse = [&](const std::string& what) {
      throw std::invalid_argument("chart line '" + line.label + "': " + what);
    };
    if (line.x.size() != line.y.size()) {
      refuse(std::to_string(line.x.size()) + " x and " + std::to_string(line.y.size()) + " y");
    }
    for (std::size_t i = 0; i < line.x.size(); ++i) {
      if (!std::isfinite(line.x[i]) || !std::isfinite(line.y[i])) {
        refuse("point " + std::to_string(i) + " is not finite");
      }
      if (picture.log_y && line.y[i] <= 0) {
        refuse("point " + std::to_string(i) + " is not positive on a logarithmic axis");
      }
      any = true;
    }
  }
  if (!any) throw std::invalid_argument("a chart without points");
}

struct interval {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();

  void include(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
};

void require_interval(double low, double high) {
  if (!(std::isfinite(low) && std::isfinite(high) && low <= high)) {
    throw std::invalid_argument("ticks: no interval [" + number(low, "%g") + ", " +
                                number(high, "%g") + "]");
  }
}

// Position of a value between the first and the last tick, in [0, 1].
double share(double value, const std::vector<double>& ticks, bool log) {
  if (log) return std::log(value / ticks.front()) / std::log(ticks.back() / ticks.front());
  return (value - ticks.front()) / (ticks.back() - ticks.front());
}

std::string text_at(double x, double y, const std::string& attributes, const std::string& text) {
  return "<text x=\"" + number(x) + "\" y=\"" + number(y) + "\" " + attributes + ">" +
         escaped(text) + "</text>\n";
}

std::string segment(double x1, double y1, double x2, double y2, const std::string& attributes) {
  return "<line x1=\"" + number(x1) + "\" y1=\"" + number(y1) + "\" x2=\"" + number(x2) +
         "\" y2=\"" + number(y2) + "\" " + attributes + "/>\n";
}

std::string stroke(std::size_t index, const chart_line& line) {
  return std::string("stroke=\"") + colours[index % colours.size()] + "\" stroke-width=\"2\"" +
         (line.dashed ? " stroke-dasharray=\"6 4\"" : "");
}

std::string marker(double x, double y, std::size_t index) {
  return "<circle cx=\"" + number(x) + "\" cy=\"" + number(y) + "\" r=\"3\" fill=\"" +
         colours[index % colours.size()] + "\"/>\n";
}

} // namespace

std::vector<double> linear_ticks(double low, double high) {
  require_interval(low, high);
  if (low == high) {
    const double around = low == 0 ? 1 : std::abs(low) / 2;
    low -= around;
    high += around;
  }
  constexpr double intervals = 6;
  const double rough = (high - low) / intervals;
  const double power = std::pow(10, std::floor(std::log10(rough)));
  double step = 10 * power;
  for (const double factor : {5.0, 2.0, 1.0}) {
    if (factor * power >= rough) step = factor * power;
  }
  // A value that is a multiple of the step but for rounding is a tick.
  constexpr double slack = 1e-9;
  const auto first = static_cast<std::int64_t>(std::floor(low / step + slack));
  const auto last = static_cast<std::int64_t>(std::ceil(high / step - slack));
  std::vector<double> ticks;
  for (std::int64_t i = first; i <= last; ++i)
    ticks.push_back(static_cast<double>(i) * step);
  return ticks;
}

std::vector<double> log_ticks(double low, double high) {
  require_interval(low, high);
  if (low <= 0) throw std::invalid_argument("log_ticks: " + number(low, "%g") + " is not positive");
  constexpr double slack = 1 + 1e-9;
  const auto enclosing = [&](const std::vector<double>& factors) {
    std::vector<double> ticks;
    const auto first = static_cast<int>(std::floor(std::log10(low))) - 1;
    const auto last = static_cast<int>(std::ceil(std::log10(high))) + 1;
    for (int exponent = first; exponent <= last; ++exponent) {
      for (const double factor : factors) {
        const double tick = factor * std::pow(10, exponent);
        if (tick <= low * slack) ticks.clear();
        ticks.push_back(tick);
        if (tick * slack >= high && ticks.size() > 1) return ticks;
      }
    }
    return ticks;
  };
  constexpr std::size_t many = 10;
  const std::vector<double> fine = enclosing({1, 2, 5});
  return fine.size() <= many ? fine : enclosing({1});
}

std::string to_svg(const chart& picture) {
  check(picture);
  interval xs;
  interval ys;
  std::size_t longest = 0;
  for (const chart_line& line : picture.lines) {
    for (const double x : line.x)
      xs.include(x);
    for (const double y : line.y)
      ys.include(y);
    longest = std::max(longest, line.label.size());
  }
  if (picture.y_from_zero && !picture.log_y) ys.include(0);
  const std::vector<double> x_ticks = linear_ticks(xs.low, xs.high);
  const std::vector<double> y_ticks =
      picture.log_y ? log_ticks(ys.low, ys.high) : linear_ticks(ys.low, ys.high);
  const auto x_of = [&](double x) { return left + plot_width * share(x, x_ticks, false); };
  const auto y_of = [&](double y) {
    return top + plot_height * (1 - share(y, y_ticks, picture.log_y));
  };

  const double right = left + plot_width;
  const double bottom = top + plot_height;
  const double legend = right + 20;
  const double width = legend + 40 + character_width * static_cast<double>(longest) + 10;
  const double height =
      std::max(bottom + below, top + legend_step * static_cast<double>(picture.lines.size()) + 10);
  const std::string size = number(width, "%.0f") + "\" height=\"" + number(height, "%.0f");
  std::string svg = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";
  svg += "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"" + size + "\" viewBox=\"0 0 " +
         number(width, "%.0f") + " " + number(height, "%.0f") +
         "\" font-family=\"sans-serif\" font-size=\"12\" fill=\"#222\">\n";
  svg += "<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n";
  svg += text_at(left + plot_width / 2, top - 20, "text-anchor=\"middle\" font-size=\"15\"",
                 picture.title);

  const std::string grid = "stroke=\"#ddd\"";
  for (const double tick : x_ticks) {
    svg += segment(x_of(tick), top, x_of(tick), bottom, grid);
    svg += text_at(x_of(tick), bottom + 18, "text-anchor=\"middle\"", number(tick, "%.6g"));
  }
  for (const double tick : y_ticks) {
    svg += segment(left, y_of(tick), right, y_of(tick), grid);
    svg += text_at(left - 8, y_of(tick) + 4, "text-anchor=\"end\"", number(tick, "%.6g"));
  }
  const std::string frame = "stroke=\"#222\"";
  svg += segment(left, bottom, right, bottom, frame);
  svg += segment(left, top, left, bottom, frame);
  svg += text_at(left + plot_width / 2, bottom + 42, "text-anchor=\"middle\"", picture.x_label);
  const double middle = top + plot_height / 2;
  svg += text_at(20, middle,
                 "text-anchor=\"middle\" transform=\"rotate(-90 20 " + number(middle) + ")\"",
                 picture.y_label);

  for (std::size_t i = 0; i < picture.lines.size(); ++i) {
    const chart_line& line = picture.lines[i];
    std::string points;
    std::string markers;
    for (std::size_t j = 0; j < line.x.size(); ++j) {
      points += (j == 0 ? "" : " ") + number(x_of(line.x[j])) + "," + number(y_of(line.y[j]));
      markers += marker(x_of(line.x[j]), y_of(line.y[j]), i);
    }
    svg += "<polyline points=\"" + points + "\" fill=\"none\" " + stroke(i, line) + "/>\n";
    svg += markers;
    const double y = top + legend_step * (static_cast<double>(i) + 0.5);
    svg += segment(legend, y, legend + 30, y, stroke(i, line));
    svg += marker(legend + 15, y, i);
    svg += text_at(legend + 38, y + 4, "text-anchor=\"start\"", line.label);
  }
  return svg + "</svg>\n";
}

} // namespace ressvd_llm
