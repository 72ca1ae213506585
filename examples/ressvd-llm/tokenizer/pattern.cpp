// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/pattern.hpp"

#include <array>
#include <cstdint>
#include <new>
#include <stdexcept>
#include <utility>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "io/error.hpp"
#include "tokenizer/oniguruma.hpp"
#include "tokenizer/utf8.hpp"

namespace ressvd_llm {
namespace {

constexpr std::size_t longest_expression = 8192;
constexpr std::uint32_t most_steps = 10'000'000;
constexpr std::uint32_t largest_heap = 262'144; // KiB

std::string message_of(int error) {
  std::array<PCRE2_UCHAR, 256> text{};
  pcre2_get_error_message(error, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

} // namespace

class pattern::compiled {
 public:
  using match_data = std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)>;

  compiled(const std::filesystem::path& file, std::string_view expression)
      : file_(file), expression_(printable(expression)) {
    if (expression.size() > longest_expression) fail("is too long");
    std::string translated;
    try {
      translated = oniguruma_to_pcre2(expression);
    } catch (const std::invalid_argument& error) {
      fail(std::string("cannot be used: ") + error.what());
    }
    int error = 0;
    PCRE2_SIZE offset = 0;
    code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                              PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &offset,
                              nullptr));
    if (!code_) fail("cannot be used: " + message_of(error));
    pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE); // where it cannot, it is interpreted
    context_.reset(pcre2_match_context_create(nullptr));
    if (!context_) throw std::bad_alloc();
    pcre2_set_match_limit(context_.get(), most_steps);
    pcre2_set_heap_limit(context_.get(), largest_heap);
  }

  match_data make_data() const {
    match_data data(pcre2_match_data_create_from_pattern(code_.get(), nullptr),
                    &pcre2_match_data_free);
    if (!data) throw std::bad_alloc();
    return data;
  }

  // Whether there is a match at `start` or later; the data then have it.
  bool search(std::string_view text, std::size_t start, pcre2_match_data* data) const {
    const auto run = [&](std::uint32_t options) {
      return pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), start,
                         PCRE2_NO_UTF_CHECK | options, data, context_.get());
    };
    int result = run(0);
    if (result == PCRE2_ERROR_JIT_STACKLIMIT) result = run(PCRE2_NO_JIT); // it takes the heap
    if (result == PCRE2_ERROR_NOMATCH) return false;
    if (result == PCRE2_ERROR_MATCHLIMIT || result == PCRE2_ERROR_HEAPLIMIT ||
        result == PCRE2_ERROR_DEPTHLIMIT) {
      fail("takes too many steps on this text");
    }
    if (result < 0) fail("cannot be matched: " + message_of(result));
    return true;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw file_error(file_, "the regular expression '" + expression_ + "' " + what);
  }

  std::filesystem::path file_;
  std::string expression_; // for messages
  std::unique_ptr<pcre2_code, decltype(&pcre2_code_free)> code_{nullptr, &pcre2_code_free};
  std::unique_ptr<pcre2_match_context, decltype(&pcre2_match_context_free)> context_{
      nullptr, &pcre2_match_context_free};
};

pattern pattern::literal(std::string text) {
  pattern made;
  made.literal_ = std::move(text);
  return made;
}

pattern pattern::regex(const std::filesystem::path& file, std::string_view expression) {
  pattern made;
  made.regex_ = std::make_shared<const compiled>(file, expression);
  return made;
}

void pattern::split(std::string_view text, const part_sink& sink) const {
  std::size_t done = 0;
  const auto match = [&](std::size_t begin, std::size_t end) {
    if (begin > done) sink(text.substr(done, begin - done), false);
    sink(text.substr(begin, end - begin), true);
    done = end;
  };
  if (regex_ == nullptr) {
    while (!literal_.empty()) {
      const std::size_t begin = text.find(literal_, done);
      if (begin == std::string_view::npos) break;
      match(begin, begin + literal_.size());
    }
  } else if (!text.empty()) {
    const compiled::match_data data = regex_->make_data();
    const PCRE2_SIZE* const ends = pcre2_get_ovector_pointer(data.get());
    bool first = true;
    std::size_t start = 0;
    while (start <= text.size() && regex_->search(text, start, data.get())) {
      // An empty match right behind another is none, and the search goes on a character later.
      if (ends[0] == ends[1] && !first && ends[1] == done) {
        start += start < text.size() ? first_character(text.substr(start)) : 1;
        continue;
      }
      first = false;
      match(ends[0], ends[1]);
      start = done;
    }
  }
  if (done < text.size()) sink(text.substr(done), false);
}

std::string pattern::replace(std::string_view text, std::string_view content) const {
  std::string result;
  result.reserve(text.size());
  split(text, [&](std::string_view part, bool matched) {
    result += matched ? content : part;
    require_growth(text.size(), result.size());
  });
  return result;
}

void require_growth(std::size_t original, std::size_t size) {
  constexpr std::size_t most_times = 64;
  constexpr std::size_t usual = 4096;
  if (size > usual && size / most_times > original) {
    throw usage_error("the tokenizer makes a text of " + std::to_string(original) +
                      " bytes more than 64 times as long");
  }
}

} // namespace ressvd_llm
