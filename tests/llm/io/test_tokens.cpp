// SPDX-License-Identifier: Apache-2.0
#include "io/tokens.hpp"

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "llm/io/temporary.hpp"
#include "support/catch.hpp"

using namespace llm_test;
using ids = std::vector<std::int32_t>;

namespace {

/// A .npy file as NumPy writes it: the header padded to a multiple of 64 bytes.
std::string npy(const std::string& dictionary, const std::string& data, char version = 1) {
  const std::size_t start = version == 1 ? 10 : 12;
  std::string header = dictionary;
  while ((start + header.size() + 1) % 64 != 0)
    header += ' ';
  header += '\n';
  const std::string length = version == 1
                                 ? bytes_of(std::vector{static_cast<std::uint16_t>(header.size())})
                                 : bytes_of(std::vector{static_cast<std::uint32_t>(header.size())});
  return std::string("\x93NUMPY") + version + '\0' + length + header + data;
}

std::string dictionary(const std::string& type, const std::string& shape,
                       const std::string& order = "False") {
  return "{'descr': '" + type + "', 'fortran_order': " + order + ", 'shape': " + shape + ", }";
}

ids parsed(const std::string& name, const std::string& content, std::int64_t vocab = 1000,
           const ressvd_llm::tokenizer* tokenizer = nullptr) {
  const temporary_directory directory;
  write(directory / name, content);
  return ressvd_llm::read_tokens(directory / name, vocab, tokenizer);
}

std::string refusal(const std::string& name, const std::string& content,
                    std::int64_t vocab = 1000) {
  return file_error_of([&] { parsed(name, content, vocab); });
}

template <class T>
void check_npy_type(const std::string& type) {
  CAPTURE(type);
  CHECK(parsed("x.npy", npy(dictionary(type, "(2, 2)"), bytes_of(std::vector<T>{1, 2, 3, 127}))) ==
        ids{1, 2, 3, 127});
}

} // namespace

TEST_CASE("raw ids are read", "[tokens]") {
  CHECK(parsed("x.u16", bytes_of(std::vector<std::uint16_t>{0, 999, 256})) == ids{0, 999, 256});
  CHECK(parsed("x.u32", bytes_of(std::vector<std::uint32_t>{70000, 1}), 70001) == ids{70000, 1});
  CHECK(parsed("x.u16", "").empty());
  CHECK_THAT(refusal("x.u16", "abc"),
             contains_text("x.u16: its 3 bytes are no whole number of tokens of 2 bytes"));
  CHECK_THAT(refusal("x.u32", "abcde"), contains_text("of tokens of 4 bytes"));
}

TEST_CASE("arrays of NumPy are read", "[tokens]") {
  check_npy_type<std::uint8_t>("|u1");
  check_npy_type<std::int8_t>("|i1");
  check_npy_type<std::uint16_t>("<u2");
  check_npy_type<std::int16_t>("<i2");
  check_npy_type<std::uint32_t>("<u4");
  check_npy_type<std::int32_t>("<i4");
  check_npy_type<std::uint64_t>("<u8");
  check_npy_type<std::int64_t>("<i8");
  const std::string three = bytes_of(std::vector<std::int32_t>{5, 6, 7});
  for (const char version : {'\1', '\2', '\3'}) {
    CHECK(parsed("x.npy", npy(dictionary("<i4", "(3,)"), three, version)) == ids{5, 6, 7});
  }
  CHECK(parsed("x.npy", npy("{'shape':(3,),'fortran_order':False,'descr':'<i4'}", three)) ==
        ids{5, 6, 7});
  CHECK(parsed("x.npy", npy(dictionary("<i4", "()"), three.substr(0, 4))) == ids{5});
  CHECK(parsed("x.npy", npy(dictionary("<i4", "(0,)"), "")).empty());
}

TEST_CASE("damaged and foreign arrays are refused", "[tokens]") {
  const std::string two = bytes_of(std::vector<std::int32_t>{5, 6});
  CHECK_THAT(refusal("x.npy", npy(dictionary(">i4", "(2,)"), two)),
             contains_text("x.npy: has elements of type '>i4' where little-endian integers"));
  CHECK_THAT(refusal("x.npy", npy(dictionary("<f4", "(2,)"), two)),
             contains_text("has elements of type '<f4'"));
  CHECK_THAT(refusal("x.npy", npy(dictionary("<i4", "(1, 2)", "True"), two)),
             contains_text("x.npy: is not in C order"));
  CHECK_THAT(refusal("x.npy", npy(dictionary("<i4", "(3,)"), two)),
             contains_text("holds 8 bytes of data for 3 elements of type <i4"));
  CHECK_THAT(refusal("x.npy", npy(dictionary("<i4", "(1,)"), two)),
             contains_text("holds 8 bytes of data for 1 elements"));
  CHECK_THAT(refusal("x.npy", npy(dictionary("<i8", "(2,)"), two.substr(0, 7))),
             contains_text("holds 7 bytes of data for 2 elements"));
  // 2^62 · 4 elements of 4 bytes: the product of the shape overflows; 2^62 · 4 bytes would be 0.
  for (const std::string shape :
       {"(4611686018427387904, 4)", "(99999999999999999999,)", "(-1,)", "(2", "[2]", "(x,)"}) {
    CHECK_THAT(refusal("x.npy", npy(dictionary("<i4", shape), two)),
               contains_text("x.npy: has a malformed .npy header"));
  }
  CHECK_THAT(refusal("x.npy", npy(dictionary("<i4", "(4611686018427387904,)"), "")),
             contains_text("holds 0 bytes of data for 4611686018427387904 elements"));
  for (const std::string text : {"{}", "{'descr': '<i4'}", "{'descr': <i4, 'shape': (2,)}",
                                 "{'descr'", "{'descr':", "{'descr': '<i4", ""}) {
    CHECK_THAT(refusal("x.npy", npy(text, two)), contains_text("has a malformed .npy header"));
  }
  CHECK_THAT(refusal("x.npy", npy(dictionary("<i4", "(2,)"), two, '\7')),
             contains_text("has a malformed .npy header"));
  CHECK_THAT(refusal("x.npy", "NUMPY"), contains_text("x.npy: is not a .npy file"));
  const std::string whole = npy(dictionary("<i4", "(2,)"), two);
  for (std::size_t size = 0; size < whole.size(); ++size) {
    CHECK_THAT(refusal("x.npy", whole.substr(0, size)), contains_text("x.npy: "));
  }
}

TEST_CASE("ids outside the vocabulary are refused with their position", "[tokens]") {
  CHECK_THAT(refusal("x.u16", bytes_of(std::vector<std::uint16_t>{1, 999, 1000})),
             contains_text("x.u16: token 2 has the id 1000, outside the vocabulary of 1000"));
  CHECK_THAT(
      refusal("x.npy", npy(dictionary("<i8", "(1,)"), bytes_of(std::vector<std::int64_t>{-1}))),
      contains_text("token 0 has the id -1, outside"));
  // 2^32 + 5 is 5 in 32 bits.
  CHECK_THAT(refusal("x.npy", npy(dictionary("<i8", "(1,)"),
                                  bytes_of(std::vector<std::int64_t>{4294967301}))),
             contains_text("token 0 has the id 4294967301, outside"));
  CHECK_THAT(refusal("x.npy", npy(dictionary("<u8", "(1,)"),
                                  bytes_of(std::vector<std::uint64_t>{~std::uint64_t{0}}))),
             contains_text("token 0 has the id 18446744073709551615, outside"));
}

TEST_CASE("text passes through the tokenizer", "[tokens]") {
  const auto bytes = ressvd_llm::byte_tokenizer();
  CHECK(parsed("x.txt", "a\nb\xff", 256, bytes.get()) == ids{97, 10, 98, 255});
  CHECK_THAT(refusal("x.txt", "a"),
             contains_text("x.txt: is text, and the model has no tokenizer"));
  CHECK_THAT(file_error_of([&] { parsed("x.txt", "az", 100, bytes.get()); }),
             contains_text("x.txt: token 1 has the id 122, outside the vocabulary of 100"));
}

TEST_CASE("files of other names and missing files are refused", "[tokens]") {
  CHECK_THAT(refusal("x.bin", "a"),
             contains_text("x.bin: its name ends in none of .txt, .npy, .u16, .u32"));
  CHECK_THAT(file_error_of([] { ressvd_llm::read_tokens("/nonexistent/x.u16", 10, nullptr); }),
             contains_text("/nonexistent/x.u16: cannot be opened: No such file or directory"));
  CHECK(ressvd_llm::holds_token_ids("a/x.npy"));
  CHECK(!ressvd_llm::holds_token_ids("a/x.txt"));
}

TEST_CASE("a text shorter than one window is refused", "[tokens]") {
  const ids tokens(255);
  CHECK(file_error_of([&] { ressvd_llm::require_window("x.txt", tokens, 256); }) ==
        "x.txt: holds 255 tokens, fewer than one window of 256");
  ressvd_llm::require_window("x.txt", tokens, 255);
}
