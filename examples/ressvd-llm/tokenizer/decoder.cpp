// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/decoder.hpp"

#include <charconv>
#include <optional>
#include <string_view>
#include <utility>

#include "tokenizer/byte_level.hpp"
#include "tokenizer/utf8.hpp"

namespace ressvd_llm {
namespace {

using token_list = std::vector<std::string>;

std::string joined(const token_list& tokens) {
  std::string text;
  for (const std::string& token : tokens)
    text += token;
  return text;
}

class byte_level_decoding final : public token_decoder {
 public:
  token_list decode(token_list tokens) const override {
    std::string bytes;
    for (const std::string& token : tokens) {
      if (!append_bytes_of(token, bytes)) bytes += token;
    }
    return {to_utf8(bytes)};
  }
};

class byte_fallback_decoding final : public token_decoder {
 public:
  token_list decode(token_list tokens) const override {
    token_list result;
    std::string bytes;
    const auto flush = [&] {
      if (is_utf8(bytes)) {
        if (!bytes.empty()) result.push_back(bytes);
      } else {
        result.insert(result.end(), bytes.size(), "\xef\xbf\xbd");
      }
      bytes.clear();
    };
    for (std::string& token : tokens) {
      if (const auto byte = byte_of(token)) {
        bytes += *byte;
      } else {
        flush();
        result.push_back(std::move(token));
      }
    }
    flush();
    return result;
  }

 private:
  static std::optional<char> byte_of(std::string_view token) {
    if (token.size() != 6 || !token.starts_with("<0x") || token.back() != '>') return std::nullopt;
    unsigned byte = 0;
    const char* const end = token.data() + 5;
    const auto parsed = std::from_chars(token.data() + 3, end, byte, 16);
    if (parsed.ec != std::errc() || parsed.ptr != end) return std::nullopt;
    return static_cast<char>(static_cast<unsigned char>(byte));
  }
};

class replace_decoding final : public token_decoder {
 public:
  replace_decoding(pattern replaced, std::string content)
      : replaced_(std::move(replaced)), content_(std::move(content)) {}

  token_list decode(token_list tokens) const override {
    for (std::string& token : tokens)
      token = replaced_.replace(token, content_);
    return tokens;
  }

 private:
  pattern replaced_;
  std::string content_;
};

class metaspace_decoding final : public token_decoder {
 public:
  metaspace_decoding(std::string replacement, bool prepended)
      : first_(pattern::literal(replacement), prepended ? "" : " "),
        others_(pattern::literal(replacement), " ") {}

  token_list decode(token_list tokens) const override {
    if (tokens.empty()) return tokens;
    std::string first = first_.decode({tokens.front()}).front();
    tokens = others_.decode(std::move(tokens));
    tokens.front() = std::move(first);
    return tokens;
  }

 private:
  replace_decoding first_;
  replace_decoding others_;
};

class fuse_decoding final : public token_decoder {
 public:
  token_list decode(token_list tokens) const override { return {joined(tokens)}; }
};

class strip_decoding final : public token_decoder {
 public:
  strip_decoding(std::string character, std::size_t start, std::size_t stop)
      : character_(std::move(character)), start_(start), stop_(stop) {}

  token_list decode(token_list tokens) const override {
    for (std::string& token : tokens) {
      std::string_view rest = token;
      for (std::size_t i = 0; i < start_ && rest.starts_with(character_); ++i)
        rest.remove_prefix(character_.size());
      for (std::size_t i = 0; i < stop_ && rest.ends_with(character_); ++i)
        rest.remove_suffix(character_.size());
      token = std::string(rest);
    }
    return tokens;
  }

 private:
  std::string character_;
  std::size_t start_;
  std::size_t stop_;
};

class decoding_sequence final : public token_decoder {
 public:
  explicit decoding_sequence(std::vector<decoder_pointer> steps) : steps_(std::move(steps)) {}

  token_list decode(token_list tokens) const override {
    const std::size_t before = size_of(tokens);
    for (const decoder_pointer& step : steps_) {
      tokens = step->decode(std::move(tokens));
      require_growth(before, size_of(tokens));
    }
    return tokens;
  }

 private:
  static std::size_t size_of(const token_list& tokens) {
    std::size_t size = 0;
    for (const std::string& token : tokens)
      size += token.size();
    return size;
  }

  std::vector<decoder_pointer> steps_;
};

} // namespace

decoder_pointer byte_level_decoder() {
  return std::make_shared<byte_level_decoding>();
}

decoder_pointer byte_fallback_decoder() {
  return std::make_shared<byte_fallback_decoding>();
}

decoder_pointer metaspace_decoder(std::string replacement, bool prepended) {
  return std::make_shared<metaspace_decoding>(std::move(replacement), prepended);
}

decoder_pointer replace_decoder(pattern replaced, std::string content) {
  return std::make_shared<replace_decoding>(std::move(replaced), std::move(content));
}

decoder_pointer fuse_decoder() {
  return std::make_shared<fuse_decoding>();
}

decoder_pointer strip_decoder(std::string character, std::size_t start, std::size_t stop) {
  return std::make_shared<strip_decoding>(std::move(character), start, stop);
}

decoder_pointer decoder_sequence(std::vector<decoder_pointer> steps) {
  return std::make_shared<decoding_sequence>(std::move(steps));
}

} // namespace ressvd_llm
