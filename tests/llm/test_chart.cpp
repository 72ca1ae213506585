// SPDX-License-Identifier: Apache-2.0
#include "ui/chart.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <random>
#include <regex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "support/catch.hpp"

using namespace ressvd_llm;

namespace {

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t result = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1))
    ++result;
  return result;
}

/// Pixels of every polyline.
std::vector<std::vector<std::pair<double, double>>> polylines(const std::string& svg) {
  std::vector<std::vector<std::pair<double, double>>> result;
  const std::regex line("<polyline points=\"([^\"]*)\"");
  const std::regex point("([-0-9.]+),([-0-9.]+)");
  for (std::sregex_iterator l(svg.begin(), svg.end(), line), end; l != end; ++l) {
    const std::string points = (*l)[1];
    result.emplace_back();
    for (std::sregex_iterator p(points.begin(), points.end(), point); p != end; ++p) {
      result.back().emplace_back(std::stod((*p)[1]), std::stod((*p)[2]));
    }
  }
  return result;
}

chart two_lines() {
  return {.title = "title",
          .x_label = "x",
          .y_label = "y",
          .lines = {{"first", {1, 2, 4}, {3, 1, 2}}, {"second", {1, 4}, {2, 5}, true}}};
}

} // namespace

TEST_CASE("linear ticks enclose the interval in few even steps", "[chart]") {
  std::mt19937 engine(1);
  std::uniform_real_distribution<double> exponent(-6, 6);
  std::uniform_real_distribution<double> offset(-10, 10);
  for (int i = 0; i < 200; ++i) {
    const double width = std::pow(10, exponent(engine));
    const double low = offset(engine) * width;
    const double high = low + width;
    const auto ticks = linear_ticks(low, high);
    // Steps are at least a sixth of the interval, of which one each may hang over at the ends.
    REQUIRE(ticks.size() >= 2);
    CHECK(ticks.size() <= 9);
    const double step = ticks[1] - ticks[0];
    CHECK(ticks.front() <= low + 1e-6 * step);
    CHECK(ticks.back() >= high - 1e-6 * step);
    CHECK(ticks.front() > low - step);
    CHECK(ticks.back() < high + step);
    for (std::size_t j = 1; j < ticks.size(); ++j)
      CHECK(ticks[j] - ticks[j - 1] == Approx(step));
    const double mantissa = step / std::pow(10, std::floor(std::log10(step * (1 + 1e-9))));
    const bool is_round = std::abs(mantissa - 1) < 1e-6 || std::abs(mantissa - 2) < 1e-6 ||
                          std::abs(mantissa - 5) < 1e-6;
    CHECK(is_round);
  }
  CHECK(linear_ticks(3, 3).size() >= 2);
  CHECK(linear_ticks(0, 0).size() >= 2);
}

TEST_CASE("logarithmic ticks enclose the interval", "[chart]") {
  std::mt19937 engine(2);
  std::uniform_real_distribution<double> exponent(-6, 6);
  for (int i = 0; i < 200; ++i) {
    const double a = std::pow(10, exponent(engine));
    const double b = std::pow(10, exponent(engine));
    const double low = std::min(a, b);
    const double high = std::max(a, b);
    const auto ticks = log_ticks(low, high);
    REQUIRE(ticks.size() >= 2);
    CHECK(ticks.front() > 0);
    CHECK(ticks.front() <= low * (1 + 1e-6));
    CHECK(ticks.back() >= high * (1 - 1e-6));
    for (std::size_t j = 1; j < ticks.size(); ++j)
      CHECK(ticks[j] > ticks[j - 1]);
    // Twelve decades, with one more at each end.
    CHECK(ticks.size() <= 15);
  }
  CHECK(log_ticks(1, 10) == std::vector<double>{1, 2, 5, 10});
}

TEST_CASE("a chart draws every point inside its axes, larger values higher", "[chart]") {
  for (const bool log : {false, true}) {
    chart picture = two_lines();
    picture.log_y = log;
    const auto lines = polylines(to_svg(picture));
    REQUIRE(lines.size() == 2);
    for (std::size_t i = 0; i < lines.size(); ++i) {
      const chart_line& line = picture.lines[i];
      REQUIRE(lines[i].size() == line.x.size());
      for (std::size_t j = 1; j < line.x.size(); ++j) {
        CHECK(lines[i][j].first > lines[i][j - 1].first);
        CHECK((lines[i][j].second < lines[i][j - 1].second) == (line.y[j] > line.y[j - 1]));
      }
    }
    // Equal values of different lines are at the same height.
    CHECK(lines[0][2].second == Approx(lines[1][0].second));
    // Halves and doubles are equally far apart on a logarithmic axis only. Pixels have two digits.
    const double down = lines[0][1].second - lines[0][2].second; // 1 to 2
    const double up = lines[0][2].second - lines[0][0].second;   // 2 to 3
    CHECK(down / up == Approx(log ? std::log(2.0) / std::log(1.5) : 1.0).epsilon(1e-3));
  }
}

TEST_CASE("a chart is well-formed and escapes its text", "[chart]") {
  chart picture = two_lines();
  picture.title = "a < b & \"c\"\n";
  picture.lines[0].label = "<script>";
  const std::string svg = to_svg(picture);
  CHECK(count(svg, "<svg ") == 1);
  CHECK(count(svg, "</svg>") == 1);
  CHECK(count(svg, "<text ") == count(svg, "</text>"));
  CHECK(count(svg, "<script>") == 0);
  CHECK_THAT(svg, contains_text("&lt;script&gt;"));
  CHECK_THAT(svg, contains_text("a &lt; b &amp; &quot;c&quot; "));
  CHECK(count(svg, "<") == count(svg, ">"));
  CHECK(count(svg, "nan") == 0);
  CHECK(count(svg, "inf") == 0);
  // The dashed line and its place in the legend.
  CHECK(count(svg, "stroke-dasharray") == 2);
}

TEST_CASE("single points and constant lines have axes", "[chart]") {
  const std::string svg =
      to_svg({.title = "", .x_label = "", .y_label = "", .lines = {{"one", {2}, {0}}}});
  CHECK(polylines(svg).at(0).size() == 1);
  CHECK(count(svg, "nan") == 0);
  const std::string log = to_svg(
      {.title = "", .x_label = "", .y_label = "", .log_y = true, .lines = {{"one", {2}, {10}}}});
  CHECK(count(log, "nan") == 0);
}

TEST_CASE("a chart refuses what cannot be drawn", "[chart]") {
  chart picture = two_lines();
  picture.lines[1].y.push_back(1);
  CHECK_THROWS_WITH(to_svg(picture), contains_text("'second': 2 x and 3 y"));
  picture = two_lines();
  picture.lines[0].y[1] = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS_WITH(to_svg(picture), contains_text("'first': point 1 is not finite"));
  picture = two_lines();
  picture.lines[0].y[1] = 0;
  CHECK_NOTHROW(to_svg(picture));
  picture.log_y = true;
  CHECK_THROWS_WITH(to_svg(picture), contains_text("point 1 is not positive"));
  picture.lines.clear();
  CHECK_THROWS_AS(to_svg(picture), std::invalid_argument);
  CHECK_THROWS_AS(linear_ticks(2, 1), std::invalid_argument);
  CHECK_THROWS_AS(log_ticks(0, 1), std::invalid_argument);
}
