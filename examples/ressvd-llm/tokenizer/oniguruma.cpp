// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/oniguruma.hpp"

#include <algorithm>
#include <array>
#include <cctype>
#include <stdexcept>
#include <utility>
#include <vector>

#include "io/error.hpp"
#include "tokenizer/utf8.hpp"

namespace ressvd_llm {
namespace {

// Members of classes, as PCRE2 has them within [ ]. Its own \s has U+180E too, its \w fewer marks
// and more numbers. Oniguruma's \w has Latin-1's numbers that are no digits, but not within a
// class.
constexpr std::string_view space_members = "\\t-\\r\\x{85}\\p{Z}";
constexpr std::string_view not_space_members = "\\S\\x{180E}";
constexpr std::string_view word_members_in_class = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}";
constexpr std::string_view word_members =
    "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}";
constexpr std::string_view hexadecimal_members = "0-9A-Fa-f";

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}
bool is_letter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}
bool is_hexadecimal(char c) {
  return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

class translation {
 public:
  explicit translation(std::string_view pattern) : rest_(pattern) {}

  std::string run() {
    while (!rest_.empty())
      step();
    return std::move(out_);
  }

 private:
  [[noreturn]] static void refuse(std::string_view what) {
    throw std::invalid_argument(std::string(what) + " is not supported");
  }

  bool take(std::string_view text) {
    if (!rest_.starts_with(text)) return false;
    rest_.remove_prefix(text.size());
    return true;
  }

  char next() {
    if (rest_.empty()) throw std::invalid_argument("it ends too early");
    const char c = rest_.front();
    rest_.remove_prefix(1);
    return c;
  }

  bool caseless() const { return !groups_.empty() && groups_.back(); }

  void step() {
    const char c = next();
    if (c == '\\') return escape();
    if (c == '[') return char_class();
    if (c == '(') return group();
    if (c == '{') return interval();
    const char before = std::exchange(literal_, '\0');
    if (c == ')') {
      if (groups_.empty()) throw std::invalid_argument("a ) closes no group");
      groups_.pop_back();
      out_ += c;
    } else if (c == '.') {
      out_ += "[^\\n]";
    } else if (c == '^') {
      out_ += "(?:\\A|(?<=\\n)(?!\\z))";
    } else if (c == '$') {
      out_ += "(?=\\n|\\z)";
    } else if (c == '|' || c == '*' || c == '+' || c == '?') {
      out_ += c;
    } else {
      literal(c, before);
    }
  }

  // Oniguruma has characters that are equal to two others in lower case, PCRE2 has not.
  void literal(char c, char before) {
    if (caseless()) {
      if (static_cast<unsigned char>(c) >= 0x80) refuse("a letter beyond ASCII within (?i:...)");
      const auto lower = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
      if ((before == 'f' && (lower == 'f' || lower == 'i' || lower == 'l')) ||
          (before == 's' && (lower == 's' || lower == 't'))) {
        refuse(std::string("'") + before + lower + "' within (?i:...)");
      }
      literal_ = lower;
    }
    out_ += c;
  }

  void group() {
    literal_ = '\0';
    bool folds = caseless();
    if (take("?i:")) {
      folds = true;
      out_ += "(?i:";
    } else if (rest_.starts_with("?")) {
      constexpr std::array<std::string_view, 6> kinds{"?:", "?=", "?!", "?>", "?<=", "?<!"};
      const auto* const kind = std::ranges::find_if(kinds, [&](auto k) { return take(k); });
      if (kind == kinds.end()) refuse("the group (" + printable(rest_.substr(0, 3)));
      out_ += '(';
      out_ += *kind;
    } else if (rest_.starts_with("*")) {
      refuse("(*");
    } else {
      out_ += "(?:"; // what it captures is of no interest
    }
    groups_.push_back(folds);
  }

  void interval() {
    literal_ = '\0';
    const std::size_t end = rest_.find('}');
    const std::string_view inside = rest_.substr(0, end);
    const std::size_t comma = std::min(inside.find(','), inside.size());
    const std::string_view low = inside.substr(0, comma);
    const std::string_view high = inside.substr(std::min(comma + 1, inside.size()));
    if (end == std::string_view::npos || low.empty() || !std::ranges::all_of(low, is_digit) ||
        !std::ranges::all_of(high, is_digit)) {
      refuse("a { that begins no interval such as {1,3}");
    }
    rest_.remove_prefix(end + 1);
    if (rest_.starts_with("+")) refuse("a + after an interval");
    if (comma == inside.size() && rest_.starts_with("?"))
      refuse("a ? after an interval of one number");
    out_ += '{';
    out_ += inside;
    out_ += '}';
  }

  void only_literals() const {
    if (caseless()) refuse("a class of characters within (?i:...)");
  }

  void escape() {
    const char before = std::exchange(literal_, '\0');
    const char c = next();
    const auto in_class = [&](std::string_view members, bool negated) {
      only_literals();
      out_ += negated ? "[^" : "[";
      out_ += members;
      out_ += ']';
    };
    switch (c) {
      case 's':
        return in_class(space_members, false);
      case 'S':
        return in_class(space_members, true);
      case 'w':
        return in_class(word_members, false);
      case 'W':
        return in_class(word_members, true);
      case 'h':
        return in_class(hexadecimal_members, false);
      case 'H':
        return in_class(hexadecimal_members, true);
      case 'b':
        return word_boundary(true);
      case 'B':
        return word_boundary(false);
      case 'A':
      case 'z':
      case 'R':
        out_ += '\\';
        out_ += c;
        return;
      default:
        break;
    }
    if (is_letter(c)) return common_escape(c);
    if (is_digit(c)) refuse("a back reference");
    quoted(c, before);
  }

  void quoted(char c, char before) {
    if (static_cast<unsigned char>(c) < 0x80) out_ += '\\';
    literal(c, before);
  }

  void word_boundary(bool boundary) {
    const std::string w = "[" + std::string(word_members) + "]";
    const std::string before = "(?<=" + w + ")";
    const std::string not_before = "(?<!" + w + ")";
    const std::string after = "(?=" + w + ")";
    const std::string not_after = "(?!" + w + ")";
    out_ += boundary ? "(?:" + before + not_after + "|" + not_before + after + ")"
                     : "(?:" + before + after + "|" + not_before + not_after + ")";
  }

  // What means the same within a class and outside.
  void common_escape(char c) {
    switch (c) {
      case 'd':
      case 'D':
        only_literals();
        out_ += c == 'd' ? "\\p{Nd}" : "\\P{Nd}";
        return;
      case 'p':
      case 'P':
        return property(c == 'P');
      case 'n':
      case 'r':
      case 't':
      case 'f':
      case 'a':
      case 'e':
        out_ += '\\';
        out_ += c;
        return;
      case 'v':
        out_ += "\\x0b";
        return;
      case 'x':
      case 'u':
        return number(c);
      default:
        refuse(std::string("\\") + c);
    }
  }

  void number(char kind) {
    std::string digits;
    if (kind == 'x' && take("{")) {
      while (!rest_.starts_with("}"))
        digits += next();
      next();
    } else {
      const std::size_t length = kind == 'x' ? 2 : 4;
      while (digits.size() < length)
        digits += next();
      if (kind == 'x' && digits[0] >= '8') refuse("a byte beyond \\x7f");
    }
    if (digits.empty() || digits.size() > 8 || !std::ranges::all_of(digits, is_hexadecimal)) {
      throw std::invalid_argument("a character's number is no number");
    }
    only_literals();
    out_ += "\\x{" + digits + "}";
  }

  void property(bool negated) {
    only_literals();
    if (!take("{")) refuse("\\p without {");
    if (take("^")) negated = !negated;
    std::string name;
    while (!rest_.starts_with("}"))
      name += next();
    next();
    if (name.empty() ||
        !std::ranges::all_of(name, [](char c) { return is_letter(c) || c == '_'; })) {
      refuse("the property '" + printable(name) + "'");
    }
    out_ += negated ? "\\P{" : "\\p{";
    // A category, or a script, whose bare name PCRE2 takes for its extensions. Other properties
    // change from one version of Unicode to the next.
    if (name.size() > 2) out_ += "sc:";
    out_ += name;
    out_ += '}';
  }

  void char_class() {
    literal_ = '\0';
    only_literals();
    out_ += '[';
    if (take("^")) out_ += '^';
    if (rest_.starts_with("]")) refuse("a ] at the beginning of a class");
    for (;;) {
      const char c = next();
      if (c == ']') break;
      if (c == '[') refuse("a class within a class");
      if (c == '&' && rest_.starts_with("&")) refuse("&& within a class");
      if (c == '\\') {
        class_escape();
      } else {
        out_ += c;
      }
    }
    out_ += ']';
  }

  void class_escape() {
    const char c = next();
    if (c == 's') {
      out_ += space_members;
    } else if (c == 'S') {
      out_ += not_space_members;
    } else if (c == 'w') {
      out_ += word_members_in_class;
    } else if (c == 'h') {
      out_ += hexadecimal_members;
    } else if (c == 'b') {
      out_ += "\\x08";
    } else if (is_letter(c)) {
      common_escape(c);
    } else if (is_digit(c)) {
      refuse("a digit after \\ within a class");
    } else {
      quoted(c, '\0');
    }
  }

  std::string_view rest_;
  std::string out_;
  std::vector<bool> groups_; // open ones; true: the case of letters is of no account
  char literal_ = '\0';      // the letter just read, in such a group
};

} // namespace

std::string oniguruma_to_pcre2(std::string_view pattern) {
  return translation(pattern).run();
}

} // namespace ressvd_llm
