// SPDX-License-Identifier: Apache-2.0
#include "io/tokens.hpp"

#include <algorithm>
#include <charconv>
#include <concepts>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "io/error.hpp"
#include "io/mapped_file.hpp"

namespace ressvd_llm {
namespace {

// Appends a file's ids, one by one, after checking their range.
class id_collector {
 public:
  id_collector(const std::filesystem::path& file, std::int64_t vocab, std::size_t count)
      : file_(file), vocab_(vocab) {
    ids_.reserve(count);
  }

  template <std::integral T>
  void add(T id) {
    if (std::cmp_less(id, 0) || std::cmp_greater_equal(id, vocab_)) {
      throw file_error(file_, "token " + std::to_string(ids_.size()) + " has the id " +
                                  std::to_string(id) + ", outside the vocabulary of " +
                                  std::to_string(vocab_));
    }
    ids_.push_back(static_cast<std::int32_t>(id));
  }

  std::vector<std::int32_t> take() { return std::move(ids_); }

 private:
  const std::filesystem::path& file_;
  std::int64_t vocab_;
  std::vector<std::int32_t> ids_;
};

template <std::integral T>
std::vector<std::int32_t> read_integers(const std::filesystem::path& file, std::int64_t vocab,
                                        std::span<const std::byte> content) {
  if (content.size() % sizeof(T) != 0) {
    throw file_error(file, "its " + std::to_string(content.size()) +
                               " bytes are no whole number of tokens of " +
                               std::to_string(sizeof(T)) + " bytes");
  }
  id_collector ids(file, vocab, content.size() / sizeof(T));
  for (std::size_t at = 0; at < content.size(); at += sizeof(T)) {
    T id;
    std::memcpy(&id, content.data() + at, sizeof(T));
    ids.add(id);
  }
  return ids.take();
}

// The dictionary at the head of a .npy file, a Python literal such as
// {'descr': '<u2', 'fortran_order': False, 'shape': (128, 256), }.
class npy_dictionary {
 public:
  npy_dictionary(const std::filesystem::path& file, std::string_view text)
      : file_(file), text_(text) {}

  // What follows "'key':", without leading spaces.
  std::string_view after(std::string_view key) const {
    const std::string quoted = "'" + std::string(key) + "'";
    std::size_t at = text_.find(quoted);
    if (at != std::string_view::npos) at = text_.find_first_not_of(' ', at + quoted.size());
    if (at == std::string_view::npos || text_[at] != ':') fail();
    at = text_.find_first_not_of(' ', at + 1);
    if (at == std::string_view::npos) fail();
    return text_.substr(at);
  }

  std::string_view element_type() const {
    const std::string_view rest = after("descr");
    const std::size_t end = rest.find('\'', 1);
    if (rest[0] != '\'' || end == std::string_view::npos) fail();
    return rest.substr(1, end - 1);
  }

  std::uint64_t elements() const {
    std::string_view rest = after("shape");
    if (rest[0] != '(') fail();
    std::uint64_t product = 1;
    rest.remove_prefix(1);
    while (!rest.empty() && rest[0] != ')') {
      std::uint64_t extent = 0;
      const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), extent);
      if (error != std::errc() || __builtin_mul_overflow(product, extent, &product)) fail();
      rest.remove_prefix(static_cast<std::size_t>(end - rest.data()));
      rest.remove_prefix(std::min(rest.find_first_not_of(", "), rest.size()));
    }
    if (rest.empty()) fail();
    return product;
  }

  [[noreturn]] void fail() const { throw file_error(file_, "has a malformed .npy header"); }

 private:
  const std::filesystem::path& file_;
  std::string_view text_;
};

std::vector<std::int32_t> read_npy(const std::filesystem::path& file, std::int64_t vocab,
                                   std::span<const std::byte> content) {
  constexpr std::string_view magic = "\x93NUMPY";
  const std::string_view text(reinterpret_cast<const char*>(content.data()), content.size());
  if (!text.starts_with(magic) || text.size() < 12) throw file_error(file, "is not a .npy file");
  const auto version = static_cast<unsigned>(content[6]);
  const std::size_t start = version == 1 ? 10 : 12;
  std::uint32_t length = 0;
  std::memcpy(&length, content.data() + 8, start - 8);
  if (version < 1 || version > 3 || length > content.size() - start) {
    throw file_error(file, "has a malformed .npy header");
  }

  const npy_dictionary header(file, text.substr(start, length));
  const std::string_view type = header.element_type();
  if (!header.after("fortran_order").starts_with("False")) {
    throw file_error(file, "is not in C order");
  }
  const std::uint64_t elements = header.elements();
  const auto read = [&](auto id) {
    using T = decltype(id);
    const std::span<const std::byte> data = content.subspan(start + length);
    if (data.size() % sizeof(T) != 0 || data.size() / sizeof(T) != elements) {
      throw file_error(file, "holds " + std::to_string(data.size()) + " bytes of data for " +
                                 std::to_string(elements) + " elements of type " + printable(type));
    }
    return read_integers<T>(file, vocab, data);
  };
  if (type == "|u1" || type == "<u1") return read(std::uint8_t{});
  if (type == "|i1" || type == "<i1") return read(std::int8_t{});
  if (type == "<u2") return read(std::uint16_t{});
  if (type == "<i2") return read(std::int16_t{});
  if (type == "<u4") return read(std::uint32_t{});
  if (type == "<i4") return read(std::int32_t{});
  if (type == "<u8") return read(std::uint64_t{});
  if (type == "<i8") return read(std::int64_t{});
  throw file_error(file, "has elements of type '" + printable(type) +
                             "' where little-endian integers are expected");
}

} // namespace

bool holds_token_ids(const std::filesystem::path& file) {
  const std::filesystem::path extension = file.extension();
  return extension == ".npy" || extension == ".u16" || extension == ".u32";
}

std::vector<std::int32_t> read_tokens(const std::filesystem::path& file, std::int64_t vocab,
                                      const tokenizer* text_tokenizer) {
  const mapped_file mapping(file);
  return parse_tokens(file, mapping.bytes(), vocab, text_tokenizer);
}

std::vector<std::int32_t> parse_tokens(const std::filesystem::path& file,
                                       std::span<const std::byte> content, std::int64_t vocab,
                                       const tokenizer* text_tokenizer) {
  const std::filesystem::path extension = file.extension();
  if (extension == ".npy") return read_npy(file, vocab, content);
  if (extension == ".u16") return read_integers<std::uint16_t>(file, vocab, content);
  if (extension == ".u32") return read_integers<std::uint32_t>(file, vocab, content);
  if (extension != ".txt") {
    throw file_error(file, "its name ends in none of .txt, .npy, .u16, .u32");
  }
  if (text_tokenizer == nullptr) throw file_error(file, "is text, and the model has no tokenizer");
  const std::vector<std::int32_t> text_ids =
      text_tokenizer->encode({reinterpret_cast<const char*>(content.data()), content.size()});
  id_collector ids(file, vocab, text_ids.size());
  for (const std::int32_t id : text_ids)
    ids.add(id);
  return ids.take();
}

void require_window(const std::filesystem::path& file, std::span<const std::int32_t> tokens,
                    std::int64_t window) {
  if (std::cmp_less(tokens.size(), window)) {
    throw file_error(file, "holds " + std::to_string(tokens.size()) +
                               " tokens, fewer than one window of " + std::to_string(window));
  }
}

} // namespace ressvd_llm
