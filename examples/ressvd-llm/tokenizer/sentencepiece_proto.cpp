// SPDX-License-Identifier: Apache-2.0
//
// The few fields of sentencepiece's ModelProto (a protocol buffer) that are needed:
//   1 pieces: 1 text, 2 score (float), 3 kind      2 trainer: 3 type of the model
//   3 normaliser: 2 character map, 3 add_dummy_prefix, 4 remove_extra_whitespaces
#include "tokenizer/sentencepiece_proto.hpp"

#include <cstdint>
#include <cstring>

#include "io/error.hpp"

namespace ressvd_llm {
namespace {

constexpr std::uint64_t bpe_type = 2;

class message {
 public:
  message(const std::filesystem::path& file, std::string_view bytes) : file_(file), bytes_(bytes) {}

  // Calls body(number, value, content): a field's value where it is an integer, its content where
  // it is not.
  template <class F>
  void for_each_field(const F& body) {
    while (!bytes_.empty()) {
      const std::uint64_t tag = integer();
      std::uint64_t value = 0;
      std::string_view content;
      switch (tag & 7) {
        case 0:
          value = integer();
          break;
        case 1:
          content = take(8);
          break;
        case 2:
          content = take(integer());
          break;
        case 5:
          content = take(4);
          break;
        default:
          fail();
      }
      body(tag >> 3, value, content);
    }
  }

  [[noreturn]] void fail() const { throw file_error(file_, "is not a sentencepiece model"); }

 private:
  std::uint64_t integer() {
    std::uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<unsigned char>(take(1)[0]);
      value |= static_cast<std::uint64_t>(byte & 127) << shift;
      if (byte < 128) return value;
    }
    fail();
  }

  std::string_view take(std::uint64_t count) {
    if (count > bytes_.size()) fail();
    const std::string_view taken = bytes_.substr(0, count);
    bytes_.remove_prefix(count);
    return taken;
  }

  const std::filesystem::path& file_;
  std::string_view bytes_;
};

sentencepiece_piece read_piece(message fields) {
  sentencepiece_piece piece;
  fields.for_each_field([&](std::uint64_t number, std::uint64_t value, std::string_view content) {
    if (number == 1) piece.text = content;
    if (number == 2) {
      if (content.size() != sizeof(piece.score)) fields.fail();
      std::memcpy(&piece.score, content.data(), sizeof(piece.score));
    }
    if (number == 3) {
      if (value < 1 || value > 6) fields.fail();
      piece.kind = static_cast<gguf_token_kind>(value);
    }
  });
  return piece;
}

} // namespace

sentencepiece_content read_sentencepiece(const std::filesystem::path& file, std::string_view text) {
  sentencepiece_content result;
  message(file, text)
      .for_each_field([&](std::uint64_t number, std::uint64_t, std::string_view content) {
        message fields(file, content);
        if (number == 1) result.pieces.push_back(read_piece(fields));
        if (number == 2) {
          fields.for_each_field([&](std::uint64_t n, std::uint64_t value, std::string_view) {
            if (n == 3) result.is_bpe = value == bpe_type;
          });
        }
        if (number == 3) {
          fields.for_each_field([&](std::uint64_t n, std::uint64_t value, std::string_view map) {
            if (n == 2) result.normalizes = !map.empty();
            if (n == 3) result.adds_space = value != 0;
            if (n == 4) result.removes_spaces = value != 0;
          });
        }
      });
  if (result.pieces.empty()) message(file, text).fail();
  return result;
}

} // namespace ressvd_llm
