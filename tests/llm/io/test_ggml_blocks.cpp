// SPDX-License-Identifier: Apache-2.0
#include "io/ggml_blocks.hpp"

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "io/gguf.hpp"
#include "io/mapped_file.hpp"
#include "io/tensor.hpp"
#include "llm/model/fixture.hpp"
#include "support/catch.hpp"

using namespace ressvd_llm;

namespace {

constexpr std::array quantised_types{dtype::q8_0, dtype::q4_0, dtype::q4_1, dtype::q5_0,
                                     dtype::q5_1, dtype::q2_k, dtype::q3_k, dtype::q4_k,
                                     dtype::q5_k, dtype::q6_k};

struct block_file {
  block_file()
      : file(std::filesystem::path(RESSVD_LLM_FIXTURES) / "gguf" / "blocks.gguf"),
        content(read_gguf("blocks.gguf", file.bytes())) {}

  const stored_tensor& at(const std::string& name) const {
    for (const stored_tensor& tensor : content.tensors) {
      if (tensor.name == name) return tensor;
    }
    throw std::runtime_error("no tensor " + name);
  }
  std::vector<float> floats(const std::string& name) const {
    std::vector<float> values(at(name).data.size() / sizeof(float));
    std::memcpy(values.data(), at(name).data.data(), at(name).data.size());
    return values;
  }

  mapped_file file;
  gguf_content content;
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

} // namespace

TEST_CASE("every quantised type is decoded bit by bit as the gguf package does", "[ggml]") {
  const block_file file;
  for (const dtype type : quantised_types) {
    std::string name(name_of(type));
    CAPTURE(name);
    const std::optional<dtype> parsed = parse_dtype(name);
    CHECK(parsed == type);
    std::transform(name.begin(), name.end(), name.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    const stored_tensor& stored = file.at(name);
    REQUIRE(stored.type == name_of(type));
    const std::vector<float> expected = file.floats(name + ".decoded");
    REQUIRE(expected.size() == 3 * static_cast<std::size_t>(block_of(type)));
    CHECK(stored.data.size() == bytes_of(type, static_cast<std::int64_t>(expected.size())));
    std::vector<float> values(expected.size());
    decode(type, stored.data.data(), std::span(values));
    CHECK(same_bits(values, expected));
    std::vector<double> wide(expected.size());
    decode(type, stored.data.data(), std::span(wide));
    CHECK(std::equal(wide.begin(), wide.end(), expected.begin(),
                     [](double a, float b) { return a == static_cast<double>(b); }));

    // Row by row, at any alignment.
    std::vector<std::byte> moved(stored.data.size() + 1);
    std::copy(stored.data.begin(), stored.data.end(), moved.begin() + 1);
    const tensor_view tensor{name, type, stored.shape, moved.data() + 1};
    CHECK(tensor.bytes() == stored.data.size());
    for (std::int64_t row = 0; row < 3; ++row) {
      std::vector<float> one(static_cast<std::size_t>(block_of(type)));
      decode_rows(tensor, row, 1, std::span(one));
      CHECK(std::equal(one.begin(), one.end(), expected.begin() + row * block_of(type)));
    }
  }
}

TEST_CASE("Q8_0 and Q4_0 are encoded bit by bit as ggml's reference does", "[ggml]") {
  const block_file file;
  for (const dtype type : {dtype::q8_0, dtype::q4_0}) {
    const std::string name = type == dtype::q8_0 ? "q8_0" : "q4_0";
    const std::vector<float> values = file.floats(name + ".values");
    const auto expected = file.at(name + ".encoded").data;
    std::vector<std::byte> encoded(expected.size());
    encode(values, type, encoded.data());
    CHECK(std::equal(encoded.begin(), encoded.end(), expected.begin()));
  }
}

TEST_CASE("values too small for a scale of 16 bits are encoded as zero", "[ggml]") {
  for (const dtype type : {dtype::q8_0, dtype::q4_0}) {
    for (const float tiny : {1e-38f, 1e-40f, std::numeric_limits<float>::denorm_min()}) {
      std::vector<float> values(32, tiny);
      std::vector<std::byte> encoded(34);
      encode(values, type, encoded.data());
      decode(type, encoded.data(), std::span(values));
      CHECK(std::all_of(values.begin(), values.end(), [](float v) { return v == 0; }));
    }
  }
}

TEST_CASE("Q8_0 errs by half a step at most, and by half an ulp of its scale", "[ggml]") {
  const auto values = ressvd_llm::testing::random_values(32 * 50, 4);
  std::vector<std::byte> encoded(50 * 34);
  encode(values, dtype::q8_0, encoded.data());
  std::vector<float> decoded(values.size());
  decode(dtype::q8_0, encoded.data(), std::span(decoded));
  for (std::size_t block = 0; block < values.size(); block += 32) {
    float largest = 0;
    for (std::size_t i = block; i < block + 32; ++i)
      largest = std::max(largest, std::abs(values[i]));
    for (std::size_t i = block; i < block + 32; ++i)
      CHECK(std::abs(values[i] - decoded[i]) <= largest * (0.501f / 127 + 1.0f / 2048));
  }
}

TEST_CASE("types that only llama.cpp writes are not encoded", "[ggml]") {
  const std::vector<float> values(256);
  std::vector<std::byte> encoded(1024);
  for (const dtype type : quantised_types) {
    if (type == dtype::q8_0 || type == dtype::q4_0) continue;
    CHECK_THROWS_AS(encode(values, type, encoded.data()), std::invalid_argument);
  }
}

TEST_CASE("rows of interleaved heads are found", "[ggml]") {
  // Two heads of 6 rows: 0 3 1 4 2 5 are how the rows of the first lie in the file.
  const std::vector<float> stored = {0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11};
  tensor_view tensor{"q", dtype::f32, {12, 1}, reinterpret_cast<const std::byte*>(stored.data())};
  tensor.interleaved = 6;
  std::vector<float> rows(12);
  decode_rows(tensor, 0, 12, std::span(rows));
  for (std::size_t i = 0; i < rows.size(); ++i)
    CHECK(rows[i] == static_cast<float>(i));
  std::vector<double> some(3);
  decode_rows(tensor, 5, 3, std::span(some));
  CHECK(some == std::vector<double>{5, 6, 7});
  // What is stored larger comes out smaller.
  tensor.added = 1;
  decode_rows(tensor, 5, 3, std::span(some));
  CHECK(some == std::vector<double>{4, 5, 6});
}
