// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/normalizer.hpp"

#include <utility>

namespace ressvd_llm {
namespace {

class unicode_rewriting final : public normalizer {
 public:
  explicit unicode_rewriting(normal_form form) : form_(form) {}
  std::string normalize(std::string_view text) const override {
    return to_normal_form(text, form_);
  }

 private:
  normal_form form_;
};

class lowercase_rewriting final : public normalizer {
 public:
  std::string normalize(std::string_view text) const override { return to_lower_case(text); }
};

class prepend_rewriting final : public normalizer {
 public:
  explicit prepend_rewriting(std::string prefix) : prefix_(std::move(prefix)) {}
  std::string normalize(std::string_view text) const override {
    return text.empty() ? std::string() : prefix_ + std::string(text);
  }

 private:
  std::string prefix_;
};

class replace_rewriting final : public normalizer {
 public:
  replace_rewriting(pattern replaced, std::string content)
      : replaced_(std::move(replaced)), content_(std::move(content)) {}
  std::string normalize(std::string_view text) const override {
    return replaced_.replace(text, content_);
  }

 private:
  pattern replaced_;
  std::string content_;
};

class rewriting_sequence final : public normalizer {
 public:
  explicit rewriting_sequence(std::vector<normalizer_pointer> steps) : steps_(std::move(steps)) {}
  std::string normalize(std::string_view text) const override {
    std::string result(text);
    for (const normalizer_pointer& step : steps_) {
      result = step->normalize(result);
      require_growth(text.size(), result.size());
    }
    return result;
  }

 private:
  std::vector<normalizer_pointer> steps_;
};

} // namespace

normalizer_pointer unicode_normalizer(normal_form form) {
  return std::make_shared<unicode_rewriting>(form);
}

normalizer_pointer lowercase_normalizer() {
  return std::make_shared<lowercase_rewriting>();
}

normalizer_pointer prepend_normalizer(std::string prefix) {
  return std::make_shared<prepend_rewriting>(std::move(prefix));
}

normalizer_pointer replace_normalizer(pattern replaced, std::string content) {
  return std::make_shared<replace_rewriting>(std::move(replaced), std::move(content));
}

normalizer_pointer normalizer_sequence(std::vector<normalizer_pointer> steps) {
  return std::make_shared<rewriting_sequence>(std::move(steps));
}

} // namespace ressvd_llm
