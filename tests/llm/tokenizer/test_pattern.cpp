// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/pattern.hpp"

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "llm/io/temporary.hpp"
#include "support/catch.hpp"
#include "tokenizer/byte_level.hpp"
#include "tokenizer/oniguruma.hpp"
#include "tokenizer/pre_tokenizer.hpp"
#include "tokenizer/utf8.hpp"

using namespace llm_test;
using ressvd_llm::pattern;

namespace {

using parts = std::vector<std::pair<std::string, bool>>;

parts parts_of(const pattern& p, std::string_view text) {
  parts found;
  p.split(text, [&](std::string_view part, bool matched) { found.emplace_back(part, matched); });
  return found;
}

std::vector<std::string> pieces_of(const ressvd_llm::pre_tokenizer& cut, std::string_view text) {
  std::vector<std::string> pieces;
  cut.split(text, true, [&](std::string_view piece, bool) { pieces.emplace_back(piece); });
  return pieces;
}

} // namespace

TEST_CASE("a pattern's parts are the text", "[pattern]") {
  for (const char* expression : {"a", "a*", "", "(?=b)", "b|$", R"(\s+)", ".", R"(\b)"}) {
    const pattern p = pattern::regex("x.json", expression);
    for (const std::string text : {"", "a", "aab a", "\xc3\xa9\xe2\x86\x92 b", "  \n "}) {
      std::string whole;
      for (const auto& [part, matched] : parts_of(p, text))
        whole += part;
      CHECK(whole == text);
    }
  }
  CHECK(parts_of(pattern::literal("aa"), "aaab") == parts{{"aa", true}, {"ab", false}});
  CHECK(parts_of(pattern::literal(""), "ab") == parts{{"ab", false}});
  CHECK(parts_of(pattern::literal("."), "ab") == parts{{"ab", false}});
}

TEST_CASE("expressions that PCRE2 would read otherwise are refused", "[pattern]") {
  for (const char* expression :
       {R"((a)\1)", R"(\k<a>)",      R"((?<a>b))",     R"((?P<a>b))",   R"((?i)a)",
        R"((?#x))", R"((*FAIL))",    R"([[:alpha:]])", R"([a[b]])",     R"([a&&b])",
        R"([]a])",  R"(\p{Letter})", R"(\p{Emoji})",   R"(\pL)",        R"(\Qa\E)",
        R"(\G)",    R"(\K)",         R"(\X)",          R"(\C)",         R"(a{,3})",
        R"(a{)",    R"(a{2}+)",      R"(a{2}?)",       R"(\xff)",       R"(\x{110000})",
        R"(\x{})",  R"((?i:ss))",    R"((?i:[a]))",    "(?i:\xc3\xa9)", R"([\W])",
        R"(()",     R"())",          R"(a\)",          R"([a)",         R"((?<=a+)b)",
        R"(*)",     R"(\p{)",        R"(\u12)",        R"([b-a])",      "(?R)",
        R"(\g<0>)"}) {
    INFO(expression);
    CHECK_THAT(file_error_of([&] { pattern::regex("x.json", expression); }),
               contains_text("x.json: the regular expression '"));
  }
  CHECK_THAT(file_error_of([] { pattern::regex("x.json", std::string(10'000, 'a')); }),
             contains_text("is too long"));
  CHECK_THAT(file_error_of(
                 [] { pattern::regex("x.json", std::string(1000, '(') + std::string(1000, ')')); }),
             contains_text("cannot be used"));
  CHECK_THAT(file_error_of([] { pattern::regex("x.json", "(((a{999}){999}){999}){999}"); }),
             contains_text("cannot be used"));
}

TEST_CASE("a search without end is given up", "[pattern]") {
  const std::string text = std::string(60, 'a') + "!";
  for (const char* expression : {R"((?:a|aa)+\z)", R"((?:a+)+\z)", R"((?:a|a)*?\z)"}) {
    INFO(expression);
    const pattern p = pattern::regex("x.json", expression);
    CHECK_THAT(file_error_of([&] { parts_of(p, text); }),
               contains_text("takes too many steps on this text"));
  }
  // The usual expressions take a few steps a character, however long a run is.
  const auto cut = ressvd_llm::named_pre_tokenizer("llama-bpe");
  for (const char c : {' ', 'a', '\n', '.', '1'}) {
    const std::string run(2'000'000, c);
    std::size_t length = 0;
    cut->split(run, true, [&](std::string_view piece, bool) {
      std::string bytes;
      REQUIRE(ressvd_llm::append_bytes_of(piece, bytes));
      length += bytes.size();
    });
    CHECK(length == run.size());
  }
}

TEST_CASE("matches alone, gone, with their neighbours or together", "[pattern]") {
  using enum ressvd_llm::split_behavior;
  const auto cut = [](ressvd_llm::split_behavior behavior, std::string_view text,
                      bool inverted = false) {
    return pieces_of(*ressvd_llm::split_pre_tokenizer(pattern::literal("-"), behavior, inverted),
                     text);
  };
  using pieces = std::vector<std::string>;
  CHECK(cut(isolated, "a--b-") == pieces{"a", "-", "-", "b", "-"});
  CHECK(cut(removed, "a--b-") == pieces{"a", "b"});
  CHECK(cut(removed, "a--b-", true) == pieces{"-", "-", "-"});
  CHECK(cut(merged_with_previous, "-a--b-") == pieces{"-", "a-", "-", "b-"});
  CHECK(cut(merged_with_next, "-a--b-") == pieces{"-a", "-", "-b", "-"});
  CHECK(cut(contiguous, "a--b-") == pieces{"a", "--", "b", "-"});
}

TEST_CASE("GPT-2's alphabet has a character for each byte", "[pattern]") {
  std::string all;
  for (int byte = 0; byte < 256; ++byte)
    all += static_cast<char>(byte);
  const std::string characters = ressvd_llm::bytes_to_characters(all);
  CHECK(ressvd_llm::is_utf8(characters));
  CHECK(ressvd_llm::bytes_to_characters(" a\n") ==
        "\xc4\xa0"
        "a\xc4\x8a"); // Ġ, Ċ
  std::string bytes = "x";
  CHECK(ressvd_llm::append_bytes_of(characters, bytes));
  CHECK(bytes == "x" + all);
  CHECK_FALSE(ressvd_llm::append_bytes_of("a\xe2\x86\x92", bytes));
  CHECK(bytes == "x" + all);
}

TEST_CASE("pre-tokenizers by GGUF's names", "[pattern]") {
  using pieces = std::vector<std::string>;
  const auto cut = [](const char* name) {
    return pieces_of(*ressvd_llm::named_pre_tokenizer(name), "it's 1234\n\nX");
  };
  const std::string space = "\xc4\xa0";
  const std::string line = "\xc4\x8a";
  CHECK(cut("gpt-2") == pieces{"it", "'s", space + "1234", line, line, "X"});
  CHECK(cut("llama-bpe") == pieces{"it", "'s", space, "123", "4", line + line, "X"});
  CHECK(cut("qwen2") == pieces{"it", "'s", space, "1", "2", "3", "4", line + line, "X"});
  CHECK(cut("smollm") == pieces{"it", "'s", space, "1", "2", "3", "4", line, line, "X"});
  CHECK(cut("default") == pieces{"it", "'", "s", space, "123", "4", line, line, "X"});
  CHECK(ressvd_llm::named_pre_tokenizer("unheard-of") == nullptr);
}

TEST_CASE("normal forms and lower case", "[pattern]") {
  using ressvd_llm::normal_form;
  using ressvd_llm::to_normal_form;
  CHECK(to_normal_form("e\xcc\x81", normal_form::nfc) == "\xc3\xa9");
  CHECK(to_normal_form("\xc3\xa9", normal_form::nfd) == "e\xcc\x81");
  CHECK(to_normal_form("\xef\xac\x81", normal_form::nfkc) == "fi");
  CHECK(to_normal_form("\xef\xac\x81", normal_form::nfc) == "\xef\xac\x81");
  const std::string zeros("a\0\xc3\xa9\0", 5);
  CHECK(to_normal_form(zeros, normal_form::nfc) == zeros);
  CHECK(ressvd_llm::to_lower_case("A\xc3\x89\xc4\xb0") == "a\xc3\xa9i\xcc\x87");
}
