// SPDX-License-Identifier: Apache-2.0
#include "io/safetensors.hpp"

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/checkpoint.hpp"
#include "llm/io/temporary.hpp"
#include "support/catch.hpp"

using namespace llm_test;
using ressvd_llm::read_safetensors;
using ressvd_llm::stored_tensor;

namespace {

std::vector<stored_tensor> parsed_file(std::string_view content) {
  return read_safetensors("x.safetensors", std::as_bytes(std::span(content)));
}

std::string refusal_of_file(std::string_view content) {
  return file_error_of([&] { parsed_file(content); });
}

std::string refusal_of_header(std::string_view header, std::size_t data = 0) {
  return refusal_of_file(safetensors(header, std::string(data, '\0')));
}

} // namespace

TEST_CASE("a well-formed file is read in the order of its data", "[safetensors]") {
  const std::string content =
      safetensors("{\"__metadata__\":{\"format\":\"pt\"}," + entry("b", "BF16", "[2,3]", 8, 20) +
                      "," + entry("a", "F32", "[2]", 0, 8) + "," + entry("c", "F4", "[4]", 20, 22) +
                      "," + entry("empty", "I64", "[0,5]", 20, 20) + "," +
                      entry("scalar", "U8", "[]", 22, 23) + "}   ",
                  std::string(23, 'x'));
  const std::vector<stored_tensor> tensors = parsed_file(content);
  REQUIRE(tensors.size() == 5);
  CHECK(tensors[0].name == "a");
  CHECK(tensors[1].name == "b");
  CHECK(tensors[1].shape == std::vector<std::int64_t>{2, 3});
  CHECK(tensors[1].type == "BF16");
  CHECK(reinterpret_cast<const char*>(tensors[1].data.data()) ==
        content.data() + content.size() - 15);
  CHECK(tensors[1].data.size() == 12);
  CHECK(tensors[2].name == "empty");
  CHECK(tensors[2].data.empty());
  CHECK(tensors[4].shape.empty());
  CHECK(parsed_file(safetensors("{}", "")).empty());
}

TEST_CASE("a file cut anywhere is refused", "[safetensors]") {
  const std::string content = safetensors(
      "{" + entry("a", "F32", "[2]", 0, 8) + "," + entry("b", "F16", "[3]", 8, 14) + "}",
      std::string(14, '\1'));
  REQUIRE(parsed_file(content).size() == 2);
  for (std::size_t size = 0; size < content.size(); ++size) {
    CAPTURE(size);
    CHECK_THAT(refusal_of_file(content.substr(0, size)), contains_text("x.safetensors: "));
  }
  CHECK_THAT(refusal_of_file(content.substr(0, content.size() - 1)),
             contains_text("x.safetensors: tensor b: its data range [8, 14) reaches beyond the 13 "
                           "bytes of data in the file (truncated?)"));
  CHECK_THAT(refusal_of_file(content + "!"),
             contains_text("1 bytes follow the data of the last tensor"));
  CHECK_THAT(refusal_of_file("tiny"), contains_text("is not a safetensors file (only 4 bytes)"));
}

TEST_CASE("a header length beyond the file is refused before anything is read", "[safetensors]") {
  for (const std::uint64_t length :
       {std::uint64_t{3}, std::uint64_t{1} << 40, ~std::uint64_t{0}, ~std::uint64_t{0} - 7}) {
    CHECK_THAT(refusal_of_file(bytes_of(std::vector{length}) + "{}"),
               contains_text("header of " + std::to_string(length) +
                             " bytes reaches beyond the 2 bytes that follow"));
  }
}

TEST_CASE("a header above the format's limit is refused", "[safetensors]") {
  const temporary_directory directory;
  const std::filesystem::path file = directory / "model.safetensors";
  write(file, bytes_of(std::vector<std::uint64_t>{100'000'001}));
  std::filesystem::resize_file(file, 100'001'000); // a hole: no disk is used
  CHECK_THAT(file_error_of([&] { ressvd_llm::checkpoint::open_file(file); }),
             contains_text("header of 100000001 bytes is above the limit of 100000000"));
}

TEST_CASE("data ranges must tile the file", "[safetensors]") {
  CHECK_THAT(
      refusal_of_header(
          "{" + entry("a", "F32", "[2]", 0, 8) + "," + entry("b", "F32", "[2]", 4, 12) + "}", 12),
      contains_text("tensor b: its data range [4, 12) overlaps that of tensor a"));
  CHECK_THAT(
      refusal_of_header(
          "{" + entry("a", "U8", "[8]", 0, 8) + "," + entry("b", "U8", "[8]", 0, 8) + "}", 8),
      contains_text("tensor b: its data range [0, 8) overlaps that of tensor a"));
  CHECK_THAT(
      refusal_of_header(
          "{" + entry("a", "F32", "[2]", 0, 8) + "," + entry("b", "F32", "[2]", 12, 20) + "}", 20),
      contains_text("tensor b: no tensor covers the 4 bytes before its data range [12, 20)"));
  CHECK_THAT(refusal_of_header("{" + entry("a", "F32", "[2]", 8, 0) + "}", 8),
             contains_text("tensor a: its data range [8, 0) is reversed"));
  CHECK_THAT(refusal_of_header("{" + entry("a", "F32", "[2]", 0, 1'000'000) + "}", 8),
             contains_text("tensor a: its data range [0, 1000000) reaches beyond the 8 bytes"));
  CHECK_THAT(
      refusal_of_header("{" + entry("a", "F32", "[2]", 0, 9'223'372'036'854'775'807) + "}", 8),
      contains_text("reaches beyond the 8 bytes"));
  CHECK_THAT(
      refusal_of_header("{" + entry("a", "F32", "[3]", 0, 8) + "}", 8),
      contains_text("tensor a: its shape and type need 12 bytes, its data range [0, 8) has 8"));
}

TEST_CASE("sizes that overflow are refused", "[safetensors]") {
  // 2^32 · 2^32 · 4 bytes is 0 modulo 2^64, as is 2^61 · 8.
  for (const std::string_view shape :
       {"[4294967296,4294967296]", "[9223372036854775807,2]", "[2305843009213693952]",
        "[4611686018427387904,4]", "[65536,65536,65536,65536]"}) {
    CAPTURE(shape);
    CHECK_THAT(refusal_of_header("{" + entry("a", "F64", shape, 0, 0) + "}"),
               contains_text("tensor a: the product of its shape overflows"));
  }
  CHECK_THAT(refusal_of_header("{" + entry("a", "F32", "[9223372036854775808]", 0, 0) + "}"),
             contains_text("tensor a: has a size beyond 63 bits"));
  CHECK_THAT(refusal_of_header("{" + entry("a", "F32", "[99999999999999999999]", 0, 0) + "}"),
             contains_text("tensor a: has a size that is no integer"));
  CHECK_THAT(refusal_of_header("{" + entry("a", "F32", "[-1]", 0, 0) + "}"),
             contains_text("tensor a: has a negative size"));
  CHECK_THAT(refusal_of_header("{" + entry("a", "F32", "[2.0]", 0, 8) + "}", 8),
             contains_text("tensor a: has a size that is no integer"));
  CHECK_THAT(refusal_of_header("{" + entry("a", "F4", "[3]", 0, 1) + "}", 1),
             contains_text("tensor a: its size is no whole number of bytes"));
}

TEST_CASE("headers of another form are refused", "[safetensors]") {
  const struct {
    std::string header, message;
  } cases[] = {
      {"", "header is not valid JSON"},
      {"{", "header is not valid JSON"},
      {"{} {}", "header is not valid JSON"},
      {"[]", "header is not a JSON object"},
      {"17", "header is not a JSON object"},
      {"null", "header is not a JSON object"},
      {"{\"a\":1}", "tensor a: has a malformed entry"},
      {"{\"a\":{}}", "tensor a: has no dtype"},
      {"{\"a\":{\"dtype\":\"F32\"}}", "tensor a: has no shape"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", "tensor a: has no two data_offsets"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}",
       "tensor a: has no two data_offsets"},
      {"{\"a\":{\"dtype\":3}}", "tensor a: has a malformed entry"},
      {"{\"a\":{\"dtype\":[]}}", "tensor a: has a malformed entry"},
      {"{\"a\":{\"shape\":\"F32\"}}", "tensor a: has a malformed entry"},
      {"{\"a\":{\"shape\":[[1]]}}", "tensor a: has a malformed entry"},
      {"{\"a\":{\"shape\":[true]}}", "tensor a: has a malformed entry"},
      {"{\"a\":{\"shape\":[null]}}", "tensor a: has a malformed entry"},
      {"{\"a\":{\"dtype\":{}}}", "tensor a: has a malformed entry"},
      {"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\"}}", "unknown or repeated key 'dtype'"},
      {"{\"a\":{\"strides\":[1]}}", "tensor a: has an unknown or repeated key 'strides'"},
      {"{\"__metadata__\":{\"a\":{}}}", "tensor __metadata__: has a malformed entry"},
      {"{\"__metadata__\":[]}", "tensor __metadata__: has a malformed entry"},
      {"{" + entry("a", "F31", "[1]", 0, 4) + "}", "tensor a: unknown element type 'F31'"},
      {"{" + entry("a", "F32", "[0]", 0, 0) + "," + entry("a", "F32", "[0]", 0, 0) + "}",
       "tensor a: occurs twice in the header"},
  };
  for (const auto& c : cases) {
    CAPTURE(c.header);
    CHECK_THAT(refusal_of_header(c.header, 4), contains_text(c.message));
  }
}

TEST_CASE("deep nesting in a header is refused at its second level", "[safetensors]") {
  CHECK_THAT(refusal_of_header("{\"a\":{\"shape\":" + std::string(5'000'000, '[')),
             contains_text("tensor a: has a malformed entry"));
  std::string objects;
  for (int depth = 0; depth < 500'000; ++depth)
    objects += "{\"a\":";
  CHECK_THAT(refusal_of_header(objects), contains_text("tensor a: has an unknown or repeated key"));
}

TEST_CASE("names from a file cannot break the line of a message", "[safetensors]") {
  const std::string message =
      refusal_of_header("{" + entry("a\\n\\u001b[2J", "F31", "[1]", 0, 4) + "}", 4);
  CHECK_THAT(message, contains_text("tensor a\\x0a\\x1b[2J: unknown element type"));
  CHECK(refusal_of_header("{" + entry(std::string(100'000, 'n'), "F31", "[1]", 0, 4) + "}", 4)
            .size() < 400);
}

TEST_CASE("a damaged header is read correctly or refused", "[safetensors]") {
  // Whatever the damage: no crash, and what is accepted lies within the file.
  const std::string good =
      safetensors("{\"__metadata__\":{\"format\":\"pt\"}," + entry("a", "F32", "[2,1]", 0, 8) +
                      "," + entry("b", "BF16", "[3]", 8, 14) + "}",
                  std::string(14, '\1'));
  std::mt19937 random{11};
  std::uniform_int_distribution<std::size_t> place{0, good.size() - 1};
  std::uniform_int_distribution<int> byte{0, 255};
  int refused = 0;
  for (int trial = 0; trial < 20000; ++trial) {
    std::string damaged = good;
    for (int change = 0; change <= trial % 3; ++change) {
      damaged[place(random)] = static_cast<char>(byte(random));
    }
    try {
      for (const stored_tensor& tensor : parsed_file(damaged)) {
        const auto* const first = reinterpret_cast<const char*>(tensor.data.data());
        REQUIRE(first >= damaged.data());
        REQUIRE(first + tensor.data.size() <= damaged.data() + damaged.size());
      }
    } catch (const ressvd_llm::file_error&) {
      ++refused;
    }
  }
  CHECK(refused > 0);
}
