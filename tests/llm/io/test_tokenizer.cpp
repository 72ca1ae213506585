// SPDX-License-Identifier: Apache-2.0
#include "io/tokenizer.hpp"

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "llm/io/temporary.hpp"
#include "support/catch.hpp"

using namespace llm_test;
using ids = std::vector<std::int32_t>;

namespace {

const std::filesystem::path fixtures = RESSVD_LLM_FIXTURES;

} // namespace

TEST_CASE("bytes are their own tokens", "[tokenizer]") {
  const auto bytes = ressvd_llm::byte_tokenizer();
  std::string all;
  for (int byte = 0; byte < 256; ++byte)
    all += static_cast<char>(byte);
  const ids encoded = bytes->encode(all);
  REQUIRE(encoded.size() == 256);
  CHECK(encoded.front() == 0);
  CHECK(encoded.back() == 255);
  CHECK(bytes->decode(encoded) == all);
  CHECK(bytes->vocab() == 256);
  CHECK_THROWS_AS(bytes->decode(ids{256}), std::invalid_argument);
}

TEST_CASE("sentencepiece gives the ids of its Python package, line by line", "[tokenizer]") {
  const auto pieces = ressvd_llm::sentencepiece_tokenizer(fixtures / "tokenizer.model");
  const auto expected = nlohmann::json::parse(read(fixtures / "tokenizer_ids.json"));
  const auto text = expected["text"].get<std::string>();
  CHECK(pieces->vocab() == expected["vocab"]);
  CHECK(pieces->encode(text) == expected["ids"].get<ids>());

  ids joined;
  std::size_t begin = 0;
  while (begin <= text.size()) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    const ids line = pieces->encode(text.substr(begin, end - begin));
    joined.insert(joined.end(), line.begin(), line.end());
    begin = end + 1;
  }
  CHECK(pieces->encode(text) == joined);
  CHECK(pieces->encode(text + "\n") == joined);
  CHECK(pieces->encode("").empty());
  CHECK(pieces->encode("\n\n").empty());
}

TEST_CASE("decoding a line gives it back", "[tokenizer]") {
  const auto pieces = ressvd_llm::sentencepiece_tokenizer(fixtures / "tokenizer.model");
  for (const std::string line : {"The rank of the matrix", "caf\xc3\xa9, 4096 \xe2\x86\x92 0"}) {
    CHECK(pieces->decode(pieces->encode(line)) == line);
  }
  CHECK_THROWS_AS(pieces->decode(ids{static_cast<std::int32_t>(pieces->vocab())}),
                  std::invalid_argument);
  CHECK_THROWS_AS(pieces->decode(ids{-1}), std::invalid_argument);
}

TEST_CASE("the tokenizer follows the config and the directory", "[tokenizer]") {
  const temporary_directory directory;
  ressvd_llm::model_config config;
  config.vocab = 320;
  CHECK_THAT(file_error_of([&] { ressvd_llm::open_tokenizer(directory.path(), config); }),
             contains_text("holds neither tokenizer.model (sentencepiece) nor tokenizer.json"));
  config.byte_tokens = true;
  CHECK(ressvd_llm::open_tokenizer(directory.path(), config)->vocab() == 256);

  config.byte_tokens = false;
  std::filesystem::copy_file(fixtures / "tokenizer.model", directory / "tokenizer.model");
  CHECK(ressvd_llm::open_tokenizer(directory.path(), config)->vocab() == 320);
  config.vocab = 319;
  CHECK_THAT(file_error_of([&] { ressvd_llm::open_tokenizer(directory.path(), config); }),
             contains_text("tokenizer.model: has 320 tokens, more than the model's vocabulary of "
                           "319"));
  write(directory / "tokenizer.model", "no model");
  CHECK_THAT(file_error_of([&] { ressvd_llm::open_tokenizer(directory.path(), config); }),
             contains_text("tokenizer.model: is not a sentencepiece model"));
}
