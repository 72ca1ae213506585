// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/tokenizer_json.hpp"

#include <cstdint>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "io/error.hpp"
#include "io/tokenizer.hpp"
#include "llm/io/temporary.hpp"
#include "support/catch.hpp"

using namespace llm_test;
using nlohmann::json;

namespace {

using token_ids = std::vector<std::int32_t>;

const std::filesystem::path tokenizer_fixtures =
    std::filesystem::path(RESSVD_LLM_FIXTURES) / "tokenizers";

json json_file(const std::string& name) {
  return json::parse(read(tokenizer_fixtures / name));
}

auto tokenizer_of(const json& content) {
  return ressvd_llm::parse_tokenizer_json("x.json", content.dump());
}

std::string refusal_of(const json& content) {
  return file_error_of([&] { tokenizer_of(content); });
}

// A model of the letters a and b, whose pair merges.
json small_tokenizer() {
  return {{"added_tokens", json::array()},
          {"model",
           {{"type", "BPE"},
            {"vocab", {{"a", 0}, {"b", 1}, {"ab", 2}}},
            {"merges", json::array({json::array({"a", "b"})})}}}};
}

json added(const std::string& content, std::int64_t id) {
  return {{"content", content}, {"id", id},        {"special", true},    {"single_word", false},
          {"lstrip", false},    {"rstrip", false}, {"normalized", false}};
}

} // namespace

TEST_CASE("tokenizer.json gives the ids and texts of the Python package", "[tokenizer]") {
  const json expected = json_file("expected.json");
  const auto texts = expected["texts"].get<std::vector<std::string>>();
  REQUIRE(texts.size() > 10);
  for (const auto& [name, results] : expected.items()) {
    if (name == "texts") continue;
    INFO(name);
    const auto tokenizer = ressvd_llm::json_tokenizer(tokenizer_fixtures / (name + ".json"));
    CHECK(tokenizer->vocab() == results["vocab"]);
    REQUIRE(tokenizer->prompt_prefix());
    CHECK(*tokenizer->prompt_prefix() == results["prefix"].get<token_ids>());
    for (std::size_t i = 0; i < texts.size(); ++i) {
      INFO(texts[i]);
      const auto ids = results["ids"][i].get<token_ids>();
      CHECK(tokenizer->encode(texts[i]) == ids);
      CHECK(tokenizer->decode(ids) == results["decoded"][i].get<std::string>());
    }
  }
}

TEST_CASE("a byte-level tokenizer gives every text back", "[tokenizer]") {
  const auto tokenizer = ressvd_llm::json_tokenizer(tokenizer_fixtures / "smollm.json");
  for (const std::string text : {"", "plain", " two  spaces \n\n", "caf\xc3\xa9 \xe6\x97\xa5 12",
                                 "\xf0\x9f\x98\x80\xf0\x9f\x98\x80", "\t\x01"}) {
    CHECK(tokenizer->decode(tokenizer->encode(text)) == text);
  }
}

TEST_CASE("what is no UTF-8 counts as replacement characters", "[tokenizer]") {
  const auto tokenizer = ressvd_llm::json_tokenizer(tokenizer_fixtures / "gpt2.json");
  const std::string r = "\xef\xbf\xbd";
  const std::vector<std::pair<std::string, std::string>> cases{
      {"a\xff"
       "b",
       "a" + r + "b"},
      {"\xc3", r},
      {"\xe2\x82", r}, // one beginning
      {"\xe2\x82"
       "a",
       r + "a"},
      {"\xf0\x9f\x98", r},
      {"\xc0\xaf", r + r}, // overlong
      {"\xe0\x80\xaf", r + r + r},
      {"\xed\xa0\x80", r + r + r},         // a surrogate
      {"\xf4\x90\x80\x80", r + r + r + r}, // beyond U+10FFFF
      {"\x80\xbf", r + r},
      {std::string("\0\xfe", 2), std::string("\0", 1) + r}};
  for (const auto& [bytes, text] : cases) {
    CHECK(tokenizer->encode(bytes) == tokenizer->encode(text));
    CHECK(tokenizer->decode(tokenizer->encode(bytes)) == text);
  }
}

TEST_CASE("ids that end within a character are decoded with replacement characters",
          "[tokenizer]") {
  const std::string r = "\xef\xbf\xbd";
  const auto bytes = ressvd_llm::json_tokenizer(tokenizer_fixtures / "gpt2.json");
  token_ids ids = bytes->encode("a\xe2\x86\x92");
  REQUIRE(ids.size() == 4);
  ids.pop_back();
  CHECK(bytes->decode(ids) == "a" + r);
  // With tokens for bytes it is one for each of them.
  const auto fallback = ressvd_llm::json_tokenizer(tokenizer_fixtures / "llama2.json");
  ids = fallback->encode("a\xe2\x86\x92");
  REQUIRE(fallback->decode(ids) == "a\xe2\x86\x92");
  ids.pop_back();
  CHECK(fallback->decode(ids) == "a" + r + r);
  CHECK_THROWS_AS(bytes->decode(token_ids{-1}), std::invalid_argument);
  CHECK(bytes->decode(token_ids{static_cast<std::int32_t>(bytes->vocab())}).empty());
  CHECK(bytes->decode(token_ids{}).empty());
}

TEST_CASE("special tokens are found in a text and leave none", "[tokenizer]") {
  const auto tokenizer = ressvd_llm::json_tokenizer(tokenizer_fixtures / "llama3.json");
  const token_ids ids = tokenizer->encode("<s>a<|special|>");
  CHECK(ids.front() == tokenizer->prompt_prefix()->front());
  CHECK(tokenizer->decode(ids) == "a");
}

TEST_CASE("the smallest tokenizer", "[tokenizer]") {
  const json content = small_tokenizer();
  const auto tokenizer = tokenizer_of(content);
  CHECK(tokenizer->encode("abba") == token_ids{2, 1, 0});
  CHECK(tokenizer->encode("axb") == token_ids{2}); // dropped, as the package does
  CHECK(tokenizer->encode("").empty());
  CHECK(tokenizer->decode(token_ids{2, 1}) == "ab b");
  CHECK(tokenizer->vocab() == 3);
  CHECK(tokenizer->prompt_prefix()->empty());
}

TEST_CASE("merges are pairs or texts of two words", "[tokenizer]") {
  json content = small_tokenizer();
  content["model"]["merges"] = {"#version: 0.2", "a b"};
  CHECK(tokenizer_of(content)->encode("ab") == token_ids{2});
  content["model"].erase("type"); // old files
  CHECK(tokenizer_of(content)->encode("ab") == token_ids{2});
  for (const json& wrong : {json("ab"), json("a b c"), json(3), json{"a"}, json{"a", 1}}) {
    content["model"]["merges"] = json::array({wrong});
    CHECK_THAT(refusal_of(content), contains_text("key 'model.merges' has an entry that is no pair "
                                                  "of tokens, at 0"));
  }
  content["model"]["merges"] = {"a x"};
  CHECK_THAT(refusal_of(content), contains_text("needs the token 'x', which is not in the"));
  content["model"]["merges"] = {"b a"};
  CHECK_THAT(refusal_of(content), contains_text("needs the token 'ba'"));
}

TEST_CASE("parts of tokenizer.json that are not supported are named", "[tokenizer]") {
  const auto with = [](const char* key, const json& value) {
    json content = small_tokenizer();
    content[key] = value;
    return refusal_of(content);
  };
  CHECK_THAT(with("normalizer", {{"type", "Precompiled"}}),
             contains_text("x.json: key 'normalizer' is of type 'Precompiled', which is not "
                           "supported"));
  CHECK_THAT(with("normalizer", {{"type", "Sequence"},
                                 {"normalizers", {{{"type", "NFC"}}, {{"type", "StripAccents"}}}}}),
             contains_text("key 'normalizer.normalizers[1]' is of type 'StripAccents'"));
  CHECK_THAT(with("pre_tokenizer", {{"type", "Punctuation"}}), contains_text("'Punctuation'"));
  CHECK_THAT(with("decoder", {{"type", "WordPiece"}}), contains_text("'WordPiece'"));
  CHECK_THAT(with("post_processor", {{"type", "BertProcessing"}}),
             contains_text("'BertProcessing'"));
  CHECK_THAT(with("model", {{"type", "Unigram"}}),
             contains_text("key 'model' is of type 'Unigram', which is not supported"));
  CHECK_THAT(with("pre_tokenizer", {{"type", "Split"},
                                    {"pattern", {{"String", "a"}}},
                                    {"behavior", "Elsewhere"},
                                    {"invert", false}}),
             contains_text("key 'pre_tokenizer.behavior' is 'Elsewhere', which is not supported"));
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    json content = small_tokenizer();
    content["model"][key] = "";
    CHECK(refusal_of(content) == "no exception");
    content["model"][key] = "@@";
    CHECK_THAT(refusal_of(content),
               contains_text("key 'model." + std::string(key) + "' is not supported"));
  }
  json content = small_tokenizer();
  content["model"]["dropout"] = 0.0;
  CHECK(refusal_of(content) == "no exception");
  content["model"]["dropout"] = 0.1;
  CHECK_THAT(refusal_of(content), contains_text("key 'model.dropout' is not supported"));
  const json metaspace{
      {"type", "Metaspace"}, {"replacement", "_"}, {"prepend_scheme", "first"}, {"split", true}};
  content = small_tokenizer();
  content["pre_tokenizer"] = metaspace;
  CHECK(refusal_of(content) == "no exception");
  content["normalizer"] = {{"type", "Prepend"}, {"prepend", "_"}};
  CHECK_THAT(refusal_of(content), contains_text("Metaspace with \"first\" beside steps"));
}

TEST_CASE("tokenizer files that contradict themselves are refused", "[tokenizer]") {
  json content = small_tokenizer();
  content["model"]["vocab"]["c"] = 1;
  CHECK_THAT(refusal_of(content), contains_text("two tokens have the id 1"));
  for (const json& id :
       {json(-1), json(1.5), json("1"), json(2147483647), json(1ull << 63), json(nullptr)}) {
    content = small_tokenizer();
    content["model"]["vocab"]["c"] = id;
    CHECK_THAT(refusal_of(content), contains_text("key 'model.vocab.c' is not a token id"));
  }
  content = small_tokenizer();
  content["model"]["unk_token"] = "u";
  CHECK_THAT(refusal_of(content), contains_text("the unknown token 'u' is not in the vocabulary"));

  const auto with_added = [](const json& tokens) {
    json changed = small_tokenizer();
    changed["added_tokens"] = tokens;
    return refusal_of(changed);
  };
  CHECK(with_added(json::array({added("x", 3), added("y", 4), added("a", 0)})) == "no exception");
  CHECK_THAT(with_added(json::array({added("x", 5)})),
             contains_text("has the id 5 where 3 is the next"));
  CHECK_THAT(with_added(json::array({added("a", 1)})),
             contains_text("has the id 1, unlike in the vocabulary"));
  CHECK_THAT(with_added(json::array({added("x", 3), added("x", 4)})),
             contains_text("'x' occurs twice"));
  CHECK_THAT(with_added(json::array({added("", 3)})), contains_text("an added token is empty"));
  CHECK_THAT(with_added(json::array({added(std::string(5000, 'x'), 3)})),
             contains_text("has 5000 bytes"));
  CHECK_THAT(with_added(json::array({json{{"content", "x"}}})),
             contains_text("key 'added_tokens[0].id' is missing"));

  content = small_tokenizer();
  content["post_processor"] = {
      {"type", "TemplateProcessing"},
      {"special_tokens", {{"s", {{"ids", {7}}}}}},
      {"single", {{{"SpecialToken", {{"id", "s"}}}}, {{"Sequence", {{"id", "A"}}}}}}};
  CHECK_THAT(refusal_of(content), contains_text("the template has the id 7, which no token has"));
  content["post_processor"]["single"].erase(1);
  CHECK_THAT(refusal_of(content), contains_text("has no place for the text"));
  content = small_tokenizer();
  content["model"]["vocab"] = json::object();
  content["model"]["merges"] = json::array();
  CHECK_THAT(refusal_of(content), contains_text("there are no tokens"));
}

TEST_CASE("a vocabulary's ids may have gaps", "[tokenizer]") {
  json content = small_tokenizer();
  content["model"]["vocab"]["c"] = 100;
  content["added_tokens"] = json::array({added("x", 4), added("c", 100), added("y", 5)});
  CHECK(tokenizer_of(content)->encode("xcya") == token_ids{4, 100, 5, 0});
  content["added_tokens"][2]["id"] = 101;
  CHECK_THAT(refusal_of(content), contains_text("has the id 101 where 5 is the next"));
}

TEST_CASE("values of the wrong type are refused", "[tokenizer]") {
  const json content = small_tokenizer();
  const json full = json_file("prefix_space.json");
  for (const json& wrong : {json(1), json("x"), json::array({1}), json(true)}) {
    for (const char* key :
         {"added_tokens", "model", "normalizer", "pre_tokenizer", "decoder", "post_processor"}) {
      json changed = content;
      changed[key] = wrong;
      INFO(key << " " << wrong);
      CHECK_THAT(refusal_of(changed), contains_text("x.json: key '"));
    }
    for (const auto& [key, value] : full["added_tokens"][0].items()) {
      if (value.type() == wrong.type() || (key == "id" && wrong.is_number())) continue;
      json changed = full;
      changed["added_tokens"][0][key] = wrong;
      CHECK_THAT(refusal_of(changed), contains_text("key 'added_tokens[0]." + key + "'"));
    }
    CHECK_THAT(refusal_of(wrong), contains_text("x.json: "));
  }
  std::string deep;
  for (int i = 0; i < 1000; ++i)
    deep += "{\"normalizer\":";
  CHECK_THAT(file_error_of([&] { ressvd_llm::parse_tokenizer_json("x.json", deep); }),
             contains_text("nested too deeply"));
  CHECK_THAT(file_error_of([] { ressvd_llm::parse_tokenizer_json("x.json", "{\"a\":\"\xff\"}"); }),
             contains_text("is not valid JSON"));
}

TEST_CASE("the template's tokens before the text are the prompt's beginning", "[tokenizer]") {
  json content = small_tokenizer();
  content["added_tokens"] = json::array({added("<s>", 3), added("</s>", 4)});
  const json known{{"<s>", {{"id", "<s>"}, {"ids", {3}}}},
                   {"</s>", {{"id", "</s>"}, {"ids", {4}}}}};
  const auto token = [](const char* name) { return json{{"SpecialToken", {{"id", name}}}}; };
  const json text{{"Sequence", {{"id", "A"}}}};
  content["post_processor"] = {{"type", "TemplateProcessing"},
                               {"special_tokens", known},
                               {"single", {token("<s>"), token("<s>"), text, token("</s>")}}};
  CHECK(*tokenizer_of(content)->prompt_prefix() == token_ids{3, 3});
  const json outer{
      {"type", "TemplateProcessing"}, {"special_tokens", known}, {"single", {token("</s>"), text}}};
  content["post_processor"] = {{"type", "Sequence"},
                               {"processors", {content["post_processor"], outer}}};
  CHECK(*tokenizer_of(content)->prompt_prefix() == token_ids{4, 3, 3});
}

TEST_CASE("a model directory with tokenizer.json alone uses it", "[tokenizer]") {
  const temporary_directory directory;
  ressvd_llm::model_config config;
  config.vocab = 400;
  std::filesystem::copy_file(tokenizer_fixtures / "smollm.json", directory / "tokenizer.json");
  CHECK(ressvd_llm::open_tokenizer(directory.path(), config)->vocab() == 400);
  config.vocab = 399;
  CHECK_THAT(file_error_of([&] { ressvd_llm::open_tokenizer(directory.path(), config); }),
             contains_text("tokenizer.json: has 400 tokens, more than the model's vocabulary of "
                           "399"));
  // Beside tokenizer.model it is not read.
  write(directory / "tokenizer.json", "{");
  CHECK_THAT(file_error_of([&] { ressvd_llm::open_tokenizer(directory.path(), config); }),
             contains_text("tokenizer.json: is not valid JSON"));
  std::filesystem::copy_file(tokenizer_fixtures.parent_path() / "tokenizer.model",
                             directory / "tokenizer.model");
  CHECK(ressvd_llm::open_tokenizer(directory.path(), config)->vocab() == 320);
}

TEST_CASE("steps that lengthen texts without end are given up", "[tokenizer]") {
  const json twice{{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", "aa"}};
  const auto message = [](const json& content, const auto& use) {
    const auto tokenizer = tokenizer_of(content);
    return message_of<ressvd_llm::usage_error>([&] { use(*tokenizer); });
  };
  const auto encodes = [](const ressvd_llm::tokenizer& tokenizer) {
    tokenizer.encode(std::string(100, 'a'));
  };
  const auto decodes = [](const ressvd_llm::tokenizer& tokenizer) {
    tokenizer.decode(token_ids(100, 0));
  };
  json content = small_tokenizer();
  content["normalizer"] = {{"type", "Sequence"}, {"normalizers", json::array()}};
  for (int i = 0; i < 6; ++i)
    content["normalizer"]["normalizers"].push_back(twice);
  CHECK(message(content, encodes) == "no exception");
  for (int i = 0; i < 40; ++i)
    content["normalizer"]["normalizers"].push_back(twice);
  CHECK_THAT(message(content, encodes), contains_text("more than 64 times as long"));

  content = small_tokenizer();
  content["decoder"] = {{"type", "Sequence"}, {"decoders", json::array()}};
  for (int i = 0; i < 40; ++i)
    content["decoder"]["decoders"].push_back(twice);
  CHECK_THAT(message(content, decodes), contains_text("more than 64 times as long"));
  content["decoder"] = twice;
  content["decoder"]["content"] = std::string(100'000, 'a');
  CHECK_THAT(message(content, decodes), contains_text("more than 64 times as long"));

  content = small_tokenizer();
  const json bytes{{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
  content["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", json::array({bytes})}};
  CHECK(refusal_of(content) == "no exception");
  for (int i = 0; i < 4; ++i)
    content["pre_tokenizer"]["pretokenizers"].push_back(bytes);
  CHECK_THAT(refusal_of(content), contains_text("has ByteLevel more than 4 times"));
  content["pre_tokenizer"]["pretokenizers"] = json::array();
  for (int i = 0; i < 1000; ++i)
    content["pre_tokenizer"]["pretokenizers"].push_back({{"type", "WhitespaceSplit"}});
  CHECK_THAT(refusal_of(content), contains_text("has more than 64 steps"));
}
