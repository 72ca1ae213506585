// SPDX-License-Identifier: Apache-2.0
#include "io/dtype.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <span>
#include <stdexcept>
#include <vector>

#include "support/catch.hpp"

using ressvd_llm::dtype;

namespace {

float decoded(dtype type, std::uint16_t bits) {
  // One byte in, so that no element is aligned.
  std::byte storage[3];
  std::memcpy(storage + 1, &bits, 2);
  float value = 0;
  ressvd_llm::decode(type, storage + 1, std::span(&value, 1));
  return value;
}

std::uint16_t encoded(dtype type, float value) {
  std::byte storage[3];
  ressvd_llm::encode(std::span(&value, 1), type, storage + 1);
  std::uint16_t bits = 0;
  std::memcpy(&bits, storage + 1, 2);
  return bits;
}

} // namespace

TEST_CASE("every 16-bit value survives decoding and encoding", "[dtype]") {
  const dtype type = GENERATE(dtype::f16, dtype::bf16);
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const auto stored = static_cast<std::uint16_t>(bits);
    const float value = decoded(type, stored);
    CAPTURE(bits, value);
    if (std::isnan(value)) {
      REQUIRE(std::isnan(decoded(type, encoded(type, value))));
    } else {
      REQUIRE(encoded(type, value) == stored);
    }
  }
}

TEST_CASE("encoding rounds to the nearest value, ties to the even one", "[dtype]") {
  const dtype type = GENERATE(dtype::f16, dtype::bf16);
  // Positive finite values are in the order of their bits, so the neighbours of bits b are b ± 1.
  const std::uint16_t infinity = encoded(type, std::numeric_limits<float>::infinity());
  std::mt19937 random{7};
  std::uniform_int_distribution<int> any{0, infinity - 2};
  std::uniform_real_distribution<float> share{0, 1};
  for (int trial = 0; trial < 20000; ++trial) {
    const auto low = static_cast<std::uint16_t>(any(random));
    const auto high = static_cast<std::uint16_t>(low + 1);
    const float below = decoded(type, low), above = decoded(type, high);
    const float middle = below + (above - below) / 2;
    const float between = below + (above - below) * share(random);
    CAPTURE(low, between);
    REQUIRE(encoded(type, middle) == (low % 2 == 0 ? low : high));
    REQUIRE(encoded(type, -middle) == ((low % 2 == 0 ? low : high) | 0x8000));
    if (between < middle) REQUIRE(encoded(type, between) == low);
    if (between > middle) REQUIRE(encoded(type, between) == high);
  }
}

TEST_CASE("values beyond the range of the type become infinite", "[dtype]") {
  CHECK(std::isinf(decoded(dtype::f16, encoded(dtype::f16, 65520.0f))));
  CHECK(decoded(dtype::f16, encoded(dtype::f16, 65519.0f)) == 65504.0f);
  CHECK(std::isinf(decoded(dtype::bf16, encoded(dtype::bf16, 3.4e38f))));
}

TEST_CASE("doubles are read in full", "[dtype]") {
  const std::vector<double> written{1.0 / 3, -1e300, 0.0};
  std::vector<double> values(3);
  ressvd_llm::decode(dtype::f64, reinterpret_cast<const std::byte*>(written.data()),
                     std::span(values));
  CHECK(values == written);
}

TEST_CASE("element types have their names in files, configs and on the command line", "[dtype]") {
  for (const dtype type : {dtype::f32, dtype::f16, dtype::bf16, dtype::f64, dtype::i32}) {
    CHECK(ressvd_llm::parse_dtype(ressvd_llm::name_of(type)) == type);
    CHECK(ressvd_llm::parse_dtype(ressvd_llm::torch_name_of(type)) == type);
  }
  CHECK(ressvd_llm::parse_dtype("bf16") == dtype::bf16);
  CHECK(!ressvd_llm::parse_dtype("I64").has_value());
  CHECK(!ressvd_llm::parse_dtype("").has_value());
}

TEST_CASE("integers are no weights", "[dtype]") {
  std::byte storage[4]{};
  float single = 0;
  double wide = 0;
  CHECK_THROWS_AS(ressvd_llm::decode(dtype::i32, storage, std::span(&single, 1)),
                  std::invalid_argument);
  CHECK_THROWS_AS(ressvd_llm::decode(dtype::i32, storage, std::span(&wide, 1)),
                  std::invalid_argument);
  CHECK_THROWS_AS(ressvd_llm::encode(std::span(&single, 1), dtype::i32, storage),
                  std::invalid_argument);
}
