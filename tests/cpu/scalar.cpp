// SPDX-License-Identifier: Apache-2.0
#include "ressvd/core/scalar.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>

#include "support/catch.hpp"

using ressvd::bfloat16;
using ressvd::half;

namespace {

template <class U>
U from_bits(std::uint32_t bits) {
  U value;
  value.bits = static_cast<std::uint16_t>(bits);
  return value;
}

/// The value that IEEE 754 gives a pattern of one sign, `exponent_bits` and `fraction_bits`.
double value_of_pattern(std::uint32_t bits, int exponent_bits, int fraction_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const auto fraction = static_cast<double>(bits & ((1u << fraction_bits) - 1u));
  const int exponent = static_cast<int>(bits >> fraction_bits) & ((1 << exponent_bits) - 1);
  const double sign = bits >> 15 != 0 ? -1 : 1;
  const double unit = std::ldexp(1.0, -fraction_bits);
  if (exponent == (1 << exponent_bits) - 1) {
    return fraction == 0 ? sign * std::numeric_limits<double>::infinity()
                         : std::numeric_limits<double>::quiet_NaN();
  }
  if (exponent == 0) return sign * std::ldexp(fraction * unit, 1 - bias);
  return sign * std::ldexp(1 + fraction * unit, exponent - bias);
}

template <class U>
struct format;
template <>
struct format<half> {
  static constexpr int exponent_bits = 5;
  static constexpr int fraction_bits = 10;
};
template <>
struct format<bfloat16> {
  static constexpr int exponent_bits = 8;
  static constexpr int fraction_bits = 7;
};

template <class U>
constexpr std::uint32_t infinity_bits = ((1u << format<U>::exponent_bits) - 1u)
                                        << format<U>::fraction_bits;

bool same_bits(float a, float b) {
  return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b);
}

} // namespace

TEMPLATE_TEST_CASE("every 16-bit pattern has its IEEE value and survives the round trip",
                   "[scalar]", half, bfloat16) {
  int wrong_values = 0;
  int wrong_round_trips = 0;
  for (std::uint32_t bits = 0; bits <= 0xffff; ++bits) {
    const auto value = static_cast<float>(from_bits<TestType>(bits));
    const double expected =
        value_of_pattern(bits, format<TestType>::exponent_bits, format<TestType>::fraction_bits);
    if (std::isnan(expected)) {
      wrong_values += !std::isnan(value);
      wrong_round_trips += !std::isnan(static_cast<float>(TestType(value)));
    } else {
      wrong_values += !same_bits(value, static_cast<float>(expected));
      wrong_round_trips += TestType(value).bits != bits;
    }
  }
  CHECK(wrong_values == 0);
  CHECK(wrong_round_trips == 0);
}

TEMPLATE_TEST_CASE("conversion rounds to nearest, ties to even, subnormals and overflow included",
                   "[scalar]", half, bfloat16) {
  constexpr float inf = std::numeric_limits<float>::infinity();
  int wrong = 0;
  for (std::uint32_t low = 0; low < infinity_bits<TestType>; ++low) {
    // The midpoint of two neighbours is a float, and so are the numbers beside it. Above the
    // largest finite value the neighbour would be the next power of two, and is infinity.
    const std::uint32_t high = low + 1;
    const double below =
        value_of_pattern(low, format<TestType>::exponent_bits, format<TestType>::fraction_bits);
    const double last_step =
        value_of_pattern(low, format<TestType>::exponent_bits, format<TestType>::fraction_bits) -
        value_of_pattern(low - (low > 0), format<TestType>::exponent_bits,
                         format<TestType>::fraction_bits);
    const double above = high == infinity_bits<TestType>
                             ? below + last_step
                             : value_of_pattern(high, format<TestType>::exponent_bits,
                                                format<TestType>::fraction_bits);
    const auto middle = static_cast<float>((below + above) / 2);
    const std::uint32_t even = low % 2 == 0 ? low : high;
    for (const std::uint32_t sign : {0u, 0x8000u}) {
      const auto rounded = [&](float v) { return TestType(sign == 0 ? v : -v).bits; };
      wrong += rounded(middle) != (even | sign);
      wrong += rounded(std::nextafter(middle, 0.0F)) != (low | sign);
      wrong += rounded(std::nextafter(middle, inf)) != (high | sign);
    }
  }
  CHECK(wrong == 0);
  CHECK(TestType(inf).bits == infinity_bits<TestType>);
  CHECK(TestType(-inf).bits == (infinity_bits<TestType> | 0x8000u));
  CHECK(TestType(std::numeric_limits<float>::max()).bits == infinity_bits<TestType>);
}

TEMPLATE_TEST_CASE("NaN stays NaN whatever its payload", "[scalar]", half, bfloat16) {
  for (std::uint32_t payload = 1; payload < (1u << 23); payload = 2 * payload + payload % 3) {
    for (const std::uint32_t sign : {0u, 0x80000000u}) {
      const auto nan = std::bit_cast<float>(sign | 0x7f800000u | payload);
      CHECK(std::isnan(static_cast<float>(TestType(nan))));
    }
  }
}

TEMPLATE_TEST_CASE("conversion is monotone", "[scalar]", half, bfloat16) {
  std::mt19937 random(1);
  std::uniform_int_distribution<std::uint32_t> bits(0, 0x7f7fffffu);
  int wrong = 0;
  for (int trial = 0; trial < 100000; ++trial) {
    const auto a = std::bit_cast<float>(bits(random));
    const auto b = std::bit_cast<float>(bits(random));
    wrong += a <= b ? TestType(a).bits > TestType(b).bits : TestType(a).bits < TestType(b).bits;
  }
  CHECK(wrong == 0);
}

TEST_CASE("doubles are stored through float within the stated error", "[scalar]") {
  std::mt19937_64 random(2);
  std::uniform_real_distribution<double> value(1, 2);
  double worst_half = 0;
  double worst_bfloat16 = 0;
  for (int trial = 0; trial < 100000; ++trial) {
    const double x = value(random);
    const auto h = ressvd::load<double>(ressvd::store<half>(x));
    const auto b = ressvd::load<double>(ressvd::store<bfloat16>(x));
    worst_half = std::max(worst_half, std::abs(h - x));
    worst_bfloat16 = std::max(worst_bfloat16, std::abs(b - x));
  }
  // In [1, 2) a unit of the last place is 2^-10 and 2^-7.
  CHECK(worst_half <= (0.5 + 0x1p-13) * 0x1p-10);
  CHECK(worst_bfloat16 <= (0.5 + 0x1p-13) * 0x1p-7);
  CHECK(ressvd::store<float>(0.1) == 0.1F);
  CHECK(ressvd::load<double>(0.1F) == static_cast<double>(0.1F));
}
