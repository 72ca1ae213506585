// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/gguf_text.hpp"

#include <cstdint>
#include <filesystem>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include <nlohmann/json.hpp>

#include "io/config.hpp"
#include "io/error.hpp"
#include "io/gguf.hpp"
#include "io/gguf_tokenizer.hpp"
#include "io/tokenizer.hpp"
#include "llm/io/temporary.hpp"
#include "support/catch.hpp"
#include "tokenizer/gguf_from_directory.hpp"
#include "tokenizer/json_from_gguf.hpp"
#include "tokenizer/tokenizer_json.hpp"

namespace ressvd_llm {
namespace {

using llm_test::file_error_of;
using llm_test::temporary_directory;
using nlohmann::json;
using id_list = std::vector<std::int32_t>;

const std::filesystem::path llm_fixtures = RESSVD_LLM_FIXTURES;

json tokenizer_fixture(const std::string& name) {
  return json::parse(llm_test::read(llm_fixtures / "tokenizers" / name));
}

std::vector<std::string> fixture_texts() {
  return tokenizer_fixture("expected.json")["texts"].get<std::vector<std::string>>();
}

// As it comes back from a file.
gguf_tokenizer written_and_read(const gguf_tokenizer& description, std::int32_t bos) {
  gguf_pairs pairs;
  pairs.u32("tokenizer.ggml.bos_token_id", static_cast<std::uint32_t>(bos));
  add_tokenizer(description, pairs);
  const std::string bytes = gguf_header(pairs, {});
  const auto content = read_gguf("x.gguf", std::as_bytes(std::span(bytes)));
  const auto result = read_gguf_tokenizer(content.metadata);
  REQUIRE(result);
  return *result;
}

gguf_tokenizer small_byte_level() {
  gguf_tokenizer result;
  result.model = "gpt2";
  result.pre = "gpt-2";
  result.tokens = {"a", "b", "ab", "<s>", "word"};
  using enum gguf_token_kind;
  result.kinds = {normal, normal, normal, control, user_defined};
  result.merges = {"a b"};
  result.bos = 3;
  return result;
}

gguf_tokenizer small_pieces() {
  gguf_tokenizer result;
  result.model = "llama";
  result.tokens = {"<unk>", "<s>", "<0x0A>", "\xe2\x96\x81", "a", "b", "ab", "\xe2\x96\x81\x61"};
  using enum gguf_token_kind;
  result.kinds = {unknown, control, byte, normal, normal, normal, normal, normal};
  result.scores = {0, 0, 0, -4, -5, -6, -1, -2};
  result.bos = 1;
  result.unknown = 0;
  return result;
}

std::string refusal_of(const gguf_tokenizer& description) {
  return file_error_of([&] { make_gguf_tokenizer("x.gguf", description); });
}

model_config config_of(std::int64_t vocab, std::optional<std::int32_t> bos) {
  model_config config;
  config.vocab = vocab;
  config.bos = bos;
  return config;
}

// The fixture removes spaces that follow others; this ends its normaliser's description with the
// contrary.
void write_pieces_that_keep_spaces(const std::filesystem::path& file) {
  using namespace std::string_literals;
  llm_test::write(file, llm_test::read(llm_fixtures / "tokenizer.model") + "\x1a\x02\x20\x00"s);
}

} // namespace

TEST_CASE("byte-level tokenizers keep their ids in GGUF", "[gguf][tokenizer]") {
  for (const char* const name : {"gpt2", "llama3", "qwen2", "smollm"}) {
    INFO(name);
    json content = tokenizer_fixture(std::string(name) + ".json");
    content["normalizer"] = nullptr; // llama.cpp has none
    const auto original = parse_tokenizer_json("x.json", content.dump());
    const std::int32_t bos = original->prompt_prefix()->empty() ? 0 : 401;
    const auto description =
        written_and_read(gguf_tokenizer_of_json("x.json", content.dump(), bos), bos);
    const auto made = make_gguf_tokenizer("x.gguf", description);
    CHECK(made->vocab() == original->vocab());
    CHECK(made->prompt_prefix() == original->prompt_prefix());
    for (const std::string& text : fixture_texts()) {
      INFO(text);
      const id_list ids = original->encode(text);
      CHECK(made->encode(text) == ids);
      CHECK(made->decode(ids) == original->decode(ids));
    }
  }
}

TEST_CASE("sentencepiece's tokenizers keep their ids in GGUF", "[gguf][tokenizer]") {
  const temporary_directory directory;
  write_pieces_that_keep_spaces(directory / "tokenizer.model");
  const auto original = sentencepiece_tokenizer(directory / "tokenizer.model");
  const auto found = gguf_tokenizer_of(directory.path(), config_of(330, 1));
  REQUIRE(std::holds_alternative<gguf_tokenizer>(found));
  const auto description = written_and_read(std::get<gguf_tokenizer>(found), 1);
  CHECK(description.tokens.size() == 330);
  CHECK(description.kinds.back() == gguf_token_kind::unused);
  CHECK(description.unknown == 0);
  const auto made = make_gguf_tokenizer("x.gguf", description);
  CHECK(made->prompt_prefix() == id_list{1});
  for (const std::string& text : fixture_texts()) {
    // Sentencepiece is given lines, marks are no texts of its own, and it does not know that
    // "<s>" is one.
    if (text.find_first_of("\n<") != std::string::npos || text.empty()) continue;
    INFO(text);
    const id_list ids = original->encode(text);
    CHECK(made->encode(text) == ids);
    CHECK(made->decode(ids) == original->decode(ids));
  }
  CHECK(made->decode(made->encode("a\nb  c\n")) == "a\nb  c\n");
}

TEST_CASE("a GGUF file's tokenizer keeps its ids as tokenizer.json", "[gguf][tokenizer]") {
  std::vector<gguf_tokenizer> all{small_byte_level()};
  for (const char* const name : {"gpt2", "llama3", "qwen2", "smollm"}) {
    json content = tokenizer_fixture(std::string(name) + ".json");
    content["normalizer"] = nullptr;
    const auto prefix = parse_tokenizer_json("x.json", content.dump())->prompt_prefix();
    const std::int32_t bos = prefix->empty() ? 0 : 401;
    all.push_back(written_and_read(gguf_tokenizer_of_json("x.json", content.dump(), bos), bos));
  }
  const temporary_directory directory;
  write_pieces_that_keep_spaces(directory / "tokenizer.model");
  const auto pieces = gguf_tokenizer_of(directory.path(), config_of(330, 1));
  all.push_back(written_and_read(std::get<gguf_tokenizer>(pieces), 1));
  all.push_back(all.back());
  all.back().add_space_prefix = false;
  all.back().add_bos = false;

  std::vector<std::string> texts = fixture_texts();
  texts.insert(texts.end(), {"ab<s>a word b", "a\nb  c\n", " ab  aab "});
  for (const gguf_tokenizer& description : all) {
    INFO(description.model << " " << description.pre << ", " << description.tokens.size());
    const auto made = make_gguf_tokenizer("x.gguf", description);
    const auto again =
        parse_tokenizer_json("tokenizer.json", tokenizer_json_of("x.gguf", description));
    CHECK(again->vocab() == made->vocab());
    CHECK(again->prompt_prefix() == made->prompt_prefix());
    for (const std::string& text : texts) {
      INFO(text);
      const id_list ids = made->encode(text);
      CHECK(again->encode(text) == ids);
      CHECK(again->decode(ids) == made->decode(ids));
    }
  }
  const auto small = make_gguf_tokenizer("x.gguf", small_pieces());
  const auto small_again =
      parse_tokenizer_json("tokenizer.json", tokenizer_json_of("x.gguf", small_pieces()));
  for (const std::string text : {"ab<s>a b", "a\nb", " abab a", "", "c"}) {
    INFO(text);
    CHECK(small_again->encode(text) == small->encode(text));
  }
  auto unknown = small_byte_level();
  unknown.pre = "mystery";
  CHECK(file_error_of([&] {
          tokenizer_json_of("x.gguf", unknown);
        }).find("'mystery' (tokenizer.ggml.pre) is not supported") != std::string::npos);
}

TEST_CASE("special tokens of GGUF are found in texts and leave none", "[gguf][tokenizer]") {
  const auto bytes = make_gguf_tokenizer("x.gguf", small_byte_level());
  CHECK(bytes->encode("ab<s>bword") == id_list{2, 3, 1, 4});
  CHECK(bytes->decode(id_list{2, 3, 1, 4}) == "abbword");
  CHECK(bytes->prompt_prefix() == id_list());
  CHECK(bytes->vocab() == 5);

  auto description = small_pieces();
  const auto pieces = make_gguf_tokenizer("x.gguf", description);
  CHECK(pieces->encode("ab") == id_list{3, 6}); // the best score merges first
  CHECK(pieces->encode("<s>a\nb") == id_list{1, 7, 2, 5});
  CHECK(pieces->encode("<0x0A>").front() == 3); // no text makes it
  CHECK(pieces->decode(id_list{7, 2, 5}) == "a\nb");
  CHECK(pieces->prompt_prefix() == id_list{1});
  description.add_space_prefix = false;
  description.add_bos = false;
  const auto bare = make_gguf_tokenizer("x.gguf", description);
  CHECK(bare->encode("ab a") == id_list{6, 7});
  CHECK(bare->decode(id_list{7}) == " a");
  CHECK(bare->prompt_prefix() == id_list());
}

TEST_CASE("Llama 3's pieces are looked up as a whole", "[gguf][tokenizer]") {
  auto description = small_byte_level();
  description.merges.clear();
  CHECK(make_gguf_tokenizer("x.gguf", description)->encode("ab") == id_list{0, 1});
  description.pre = "llama-bpe";
  const auto made = make_gguf_tokenizer("x.gguf", description);
  CHECK(made->encode("ab") == id_list{2});
  CHECK(made->prompt_prefix() == id_list{3});
}

TEST_CASE("tokenizers of GGUF that cannot be had are refused by name", "[gguf][tokenizer]") {
  const auto refused = [](const gguf_tokenizer& description, const char* what) {
    CHECK_THAT(refusal_of(description), contains_text(std::string("x.gguf: ") + what));
  };
  auto d = small_byte_level();
  d.pre = "tekken";
  refused(d, "the pre-tokenizer 'tekken' (tokenizer.ggml.pre) is not supported");
  d.pre = "";
  refused(d, "the pre-tokenizer ''");
  d = small_byte_level();
  d.model = "bert";
  refused(d, "the kind of tokenizer 'bert' (tokenizer.ggml.model) is not supported");
  d = small_byte_level();
  for (const char* const merge : {"ab", "a b ab", ""}) {
    d.merges = {merge};
    CHECK_THAT(refusal_of(d), contains_text("is no pair of tokens"));
  }
  d.merges = {"a word"};
  refused(d, "the merge of 'a' and 'word' needs the token 'aword'");
  d = small_byte_level();
  d.tokens[1] = "a";
  refused(d, "the token 'a' occurs twice");
  d = small_byte_level();
  d.tokens[1] = "b\xe2\x96";
  refused(d, "the text of token 1 is not UTF-8");
  d = small_byte_level();
  d.tokens[3] = "";
  refused(d, "an added token is empty");
  d = small_byte_level();
  d.add_bos = true;
  d.bos.reset();
  refused(d, "tokenizer.ggml.bos_token_id is missing");
  d = small_pieces();
  d.scores.clear();
  refused(d, "tokenizer.ggml.scores is missing");
  d = small_pieces();
  d.scores[5] = std::numeric_limits<float>::quiet_NaN();
  refused(d, "the token 'b' has no number for a score");
}

TEST_CASE("what GGUF cannot say of a tokenizer is named", "[gguf][tokenizer]") {
  const temporary_directory directory;
  const auto reason = [&](std::int64_t vocab = 500, std::optional<std::int32_t> bos = 401) {
    const auto found = gguf_tokenizer_of(directory.path(), config_of(vocab, bos));
    REQUIRE(std::holds_alternative<std::string>(found));
    return std::get<std::string>(found);
  };
  const auto write_json = [&](const json& content) {
    llm_test::write(directory / "tokenizer.json", content.dump());
  };
  CHECK_THAT(reason(), contains_text("holds neither tokenizer.model nor tokenizer.json"));
  for (const char* const name : {"llama2", "metaspace", "words", "prefix_space"}) {
    INFO(name);
    write_json(tokenizer_fixture(std::string(name) + ".json"));
    CHECK_THAT(reason(), contains_text("GGUF"));
  }
  json content = tokenizer_fixture("llama3.json");
  write_json(content);
  CHECK_THAT(reason(402), contains_text("has more tokens than the model"));
  CHECK_THAT(reason(500, 0), contains_text("begins texts with other tokens"));
  content["model"]["ignore_merges"] = false;
  write_json(content);
  CHECK_THAT(reason(), contains_text("ignore_merges"));
  content = tokenizer_fixture("gpt2.json");
  content["added_tokens"][0]["lstrip"] = true;
  write_json(content);
  CHECK_THAT(reason(), contains_text("'<|special|>' takes white space along"));
  write_json("no tokenizer");
  CHECK_THAT(reason(), contains_text("is not a JSON object"));

  std::filesystem::copy_file(llm_fixtures / "tokenizer.model", directory / "tokenizer.model");
  CHECK_THAT(reason(), contains_text("tokenizer.model: removes spaces that follow others"));
  const std::string model = llm_test::read(directory / "tokenizer.model");
  for (std::size_t length = 0; length < model.size(); length += 97) {
    llm_test::write(directory / "tokenizer.model", model.substr(0, length));
    CHECK_THAT(reason(), contains_text("tokenizer.model"));
  }
}

} // namespace ressvd_llm
