// SPDX-License-Identifier: Apache-2.0
#include "model/choices.hpp"

#include <cmath>
#include <cstdint>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "fixture.hpp"
#include "io/tasks.hpp"
#include "io/tokenizer.hpp"
#include "llm/io/temporary.hpp"
#include "support/catch.hpp"

namespace ressvd_llm {
namespace {

using llm_test::file_error_of;
using llm_test::temporary_directory;
using testing::fixture;
using id_list = std::vector<std::int32_t>;

// Σ log p of the tokens from `first` on, each from the logits before it.
double by_hand(const language_model& model, const id_list& ids, std::size_t first) {
  const std::vector<float> logits = testing::run(model, ids, static_cast<std::int64_t>(ids.size()));
  const auto vocab = static_cast<std::size_t>(model.config().vocab);
  double sum = 0;
  for (std::size_t i = first; i < ids.size(); ++i) {
    const float* const row = logits.data() + (i - 1) * vocab;
    double total = 0;
    for (std::size_t j = 0; j < vocab; ++j)
      total += std::exp(static_cast<double>(row[j]));
    sum += static_cast<double>(row[static_cast<std::size_t>(ids[i])]) - std::log(total);
  }
  return sum;
}

id_list joined(const continuation& c) {
  id_list ids = c.context;
  ids.insert(ids.end(), c.text.begin(), c.text.end());
  return ids;
}

std::vector<continuation> continuations_of(const fixture& f) {
  std::vector<continuation> result;
  const auto part = [&](std::size_t begin, std::size_t length) {
    const auto at = f.tokens.begin() + static_cast<std::ptrdiff_t>(begin);
    return id_list(at, at + static_cast<std::ptrdiff_t>(length));
  };
  for (std::size_t i = 0; i < 24; ++i)
    result.push_back({part(i, 1 + i % 17), part(40 + i, 1 + i % 5)});
  // Of one context, with inputs in common.
  for (const std::int32_t id : {3, 4, 5})
    result.push_back({part(7, 12), {id}});
  result.push_back(result.back());
  return result;
}

// Words of one letter each, and spaces of their own.
class letters final : public tokenizer {
 public:
  id_list encode(std::string_view text) const override {
    id_list ids;
    for (std::size_t i = 0; i < text.size(); ++i) {
      // " a" is one token, as in byte-pair encodings.
      if (text[i] == ' ' && i + 1 < text.size() && text[i + 1] != ' ') {
        ids.push_back(1000 + text[++i]);
      } else {
        ids.push_back(text[i]);
      }
    }
    return ids;
  }
  std::string decode(std::span<const std::int32_t>) const override { return ""; }
  std::int64_t vocab() const override { return 2000; }
};

choice_item item_of(std::string task, std::vector<std::string> choices, std::size_t answer) {
  choice_item item;
  item.task = std::move(task);
  item.contexts = {"context"};
  item.choices = std::move(choices);
  item.answer = answer;
  return item;
}

} // namespace

TEST_CASE("continuations are scored by the logits before their tokens", "[choices]") {
  for (const char* const name : {"llama", "mistral", "opt", "qwen3"}) {
    INFO(name);
    const fixture f(name);
    const language_model model = language_model::open(f.directory);
    const std::vector<continuation> all = continuations_of(f);
    cpu_forward engine(f.config);
    const std::vector<double> sums =
        log_probabilities(model, engine, all, {.max_length = f.config.max_positions});
    REQUIRE(sums.size() == all.size());
    for (std::size_t i = 0; i < all.size(); ++i) {
      INFO(i);
      CHECK(sums[i] == Approx(by_hand(model, joined(all[i]), all[i].context.size())).epsilon(1e-5));
    }
    // However few fit at a time.
    choice_options options{.max_length = f.config.max_positions};
    options.evaluation.memory_limit = 1;
    const std::vector<double> alone = log_probabilities(model, engine, all, options);
    for (std::size_t i = 0; i < all.size(); ++i)
      CHECK(alone[i] == Approx(sums[i]).epsilon(1e-6));
  }
}

TEST_CASE("what the model does not reach is left out at the beginning", "[choices]") {
  const fixture f("opt");
  const language_model model = language_model::open(f.directory);
  cpu_forward engine(f.config);
  const continuation whole{{f.tokens.begin(), f.tokens.begin() + 30}, {7, 8, 9}};
  const auto sums = log_probabilities(model, engine, std::vector{whole}, {.max_length = 10});
  // The last token is no input: ten of the others are left.
  const id_list ids = joined(whole);
  CHECK(sums[0] == Approx(by_hand(model, {ids.end() - 11, ids.end()}, 8)).epsilon(1e-5));
  CHECK_THROWS_AS(log_probabilities(model, engine, std::vector{whole}, {.max_length = 2}),
                  std::invalid_argument);
  CHECK_THROWS_AS(log_probabilities(model, engine, std::vector{continuation{{}, {1}}}),
                  std::invalid_argument);
  CHECK_THROWS_AS(log_probabilities(model, engine, std::vector{continuation{{1}, {}}}),
                  std::invalid_argument);
  CHECK(log_probabilities(model, engine, {}).empty());
}

TEST_CASE("context and continuation are encoded as one text", "[choices]") {
  const letters tokens;
  const id_list bos{9};
  const auto cut = [&](std::string_view context, std::string_view text, const id_list& prefix) {
    return encode_continuation(tokens, prefix, bos, context, text);
  };
  CHECK(cut("ab", " c", {}).context == id_list{'a', 'b'});
  CHECK(cut("ab", " c", {}).text == id_list{1000 + 'c'});
  // The space goes where its token is.
  CHECK(cut("ab ", "c", {}).context == id_list{'a', 'b'});
  CHECK(cut("ab ", "c", {}).text == id_list{1000 + 'c'});
  CHECK(cut("ab\xc2\xa0\n", "c", bos).context == id_list{9, 'a', 'b'});
  CHECK(cut("a", " b c", bos).text == id_list{1000 + 'b', 1000 + 'c'});
  CHECK(cut("", " c", {}).context == bos);
  CHECK(cut("", " c", {}).text == id_list{1000 + 'c'});
  CHECK(cut("", "\t\t", {}).text == id_list{9}); // the first token stands for the context
  CHECK(cut("  ", "c", bos).context == bos);
  CHECK_THROWS_AS(cut("  ", "c", {}), std::invalid_argument);
  CHECK_THROWS_AS(cut("ab", "", {}), std::invalid_argument);
  CHECK_THROWS_AS(encode_continuation(tokens, {}, {}, "", "c"), std::invalid_argument);
}

TEST_CASE("sentencepiece encodes a context with its line breaks", "[choices]") {
  const auto pieces =
      sentencepiece_tokenizer(std::filesystem::path(RESSVD_LLM_FIXTURES) / "tokenizer.model");
  CHECK(pieces->encode_whole("the rank") == pieces->encode("the rank"));
  CHECK(pieces->decode(pieces->encode_whole("the\nrank")) == "the\nrank");
  CHECK(pieces->decode(pieces->encode("the\nrank")) != "the\nrank");
}

TEST_CASE("choices are compared by sum, by character and by byte", "[choices]") {
  const std::vector<choice_item> items = {
      item_of("a", {"x", "yyyy"}, 0),
      item_of("b", {"\xc3\xa9\xc3\xa9\xc3\xa9", "zzzz"}, 0),
      item_of("a", {"x", "yyyy"}, 1),
  };
  // −2 against −4/4; −4/3 or −4/6 a unit against −4.4/4; ties go to the first.
  const std::vector<double> sums = {-2, -4, -4, -4.4, -3, -3};
  const auto results = score_tasks(items, sums);
  REQUIRE(results.size() == 2);
  CHECK(results[0].task == "a");
  CHECK(results[0].plain.items == 2);
  CHECK(results[0].plain.right == 1);
  CHECK(results[0].by_characters.right == 1);
  CHECK(results[1].plain.right == 1);
  CHECK(results[1].by_characters.right == 0);
  CHECK(results[1].by_bytes.right == 1);
  CHECK(score_tasks({}, {}).empty());
}

TEST_CASE("the standard error is that of a mean", "[choices]") {
  const accuracy a{.right = 7, .items = 20};
  double squares = 0;
  for (int i = 0; i < 20; ++i)
    squares += std::pow((i < 7 ? 1 : 0) - a.value(), 2);
  CHECK(a.value() == 0.35);
  CHECK(a.standard_error() == Approx(std::sqrt(squares / 19) / std::sqrt(20.0)));
  CHECK(accuracy{.right = 1, .items = 1}.standard_error() == 0);
}

TEST_CASE("task files are read line by line", "[choices]") {
  const temporary_directory directory;
  const auto file = directory / "tasks.jsonl";
  llm_test::write(file,
                  "{\"task\": \"t\", \"context\": \"c\", \"choices\": [\"a\", \"b\"], "
                  "\"answer\": 1, \"id\": 12}\r\n\n"
                  "{\"task\": \"u\", \"contexts\": [\"c\", \"d\"], \"choices\": [\"a\", \"a\"], "
                  "\"answer\": 0, \"delimiter\": \"\"}");
  const auto items = read_tasks(file);
  REQUIRE(items.size() == 2);
  CHECK(items[0].id == "12");
  CHECK(items[0].answer == 1);
  CHECK(items[0].context_of(1) == "c");
  CHECK(items[0].delimiter == " ");
  CHECK(items[1].id == "3");
  CHECK(items[1].context_of(1) == "d");
  CHECK(items[1].delimiter.empty());

  const auto refused = [&](const std::string& line, const char* what) {
    INFO(line);
    llm_test::write(file, "\n" + line);
    CHECK_THAT(file_error_of([&] { read_tasks(file); }), contains_text(what));
  };
  refused("{", "tasks.jsonl: line 2 is not valid JSON");
  refused("[]", "line 2 is not an object");
  refused("{}", "line 2 has no 'task'");
  refused(R"({"task": 1})", "a 'task' that is no text");
  refused(R"({"task": "t", "context": "c", "answer": 0, "choices": ["a"]})", "fewer than two");
  refused(R"({"task": "t", "context": "c", "answer": 0, "choices": "ab"})", "no list");
  refused(R"({"task": "t", "context": "c", "answer": 0, "choices": ["a", 1]})", "not texts");
  refused(R"({"task": "t", "answer": 0, "choices": ["a", "b"]})", "exactly one of");
  refused(R"({"task": "t", "context": "c", "contexts": [], "answer": 0, "choices": ["a", "b"]})",
          "exactly one of");
  refused(R"({"task": "t", "contexts": ["c"], "answer": 0, "choices": ["a", "b"]})",
          "has 1 contexts for 2 choices");
  for (const char* const answer : {"2", "-1", "0.5", "\"0\"", "null"}) {
    refused(R"({"task": "t", "context": "c", "choices": ["a", "b"], "answer": )" +
                std::string(answer) + "}",
            "no index of a choice");
  }
  llm_test::write(file, "\n \n");
  CHECK_THAT(file_error_of([&] { read_tasks(file); }), contains_text("holds no items"));
}

} // namespace ressvd_llm
