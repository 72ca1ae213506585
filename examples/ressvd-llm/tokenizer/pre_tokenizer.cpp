// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/pre_tokenizer.hpp"

#include <utility>

#include "tokenizer/byte_level.hpp"
#include "tokenizer/utf8.hpp"

namespace ressvd_llm {
namespace {

class split_cutting final : public pre_tokenizer {
 public:
  split_cutting(pattern separator, split_behavior behavior, bool inverted)
      : separator_(std::move(separator)), behavior_(behavior), inverted_(inverted) {}

  void split(std::string_view text, bool at_start, const piece_sink& next) const override {
    const auto emit = [&](std::string_view piece) {
      next(piece, at_start && piece.data() == text.data());
    };
    // The last part, as long as the next one may join it.
    std::string_view held;
    bool holds = false;
    bool held_matched = false;
    separator_.split(text, [&](std::string_view part, bool found) {
      const bool matched = found != inverted_;
      if (behavior_ == split_behavior::isolated) return emit(part);
      if (behavior_ == split_behavior::removed) {
        if (!matched) emit(part);
        return;
      }
      if (holds && joins(held_matched, matched)) {
        held = {held.data(), held.size() + part.size()};
      } else {
        if (holds) emit(held);
        held = part;
      }
      holds = true;
      held_matched = matched;
    });
    if (holds) emit(held);
  }

 private:
  bool joins(bool previous, bool current) const {
    switch (behavior_) {
      case split_behavior::merged_with_previous:
        return current && !previous;
      case split_behavior::merged_with_next:
        return previous && !current;
      default:
        return previous == current;
    }
  }

  pattern separator_;
  split_behavior behavior_;
  bool inverted_;
};

class byte_level_cutting final : public pre_tokenizer {
 public:
  byte_level_cutting(bool add_prefix_space, bool use_regex) : add_prefix_space_(add_prefix_space) {
    if (use_regex) {
      cut_ =
          split_pre_tokenizer(pattern::regex("GPT-2", gpt2_expression), split_behavior::isolated);
    }
  }

  void split(std::string_view text, bool at_start, const piece_sink& next) const override {
    if (text.empty()) return;
    if (add_prefix_space_ && !text.starts_with(' ')) {
      const std::string spaced = " " + std::string(text);
      return cut(spaced, at_start, next);
    }
    cut(text, at_start, next);
  }

 private:
  void cut(std::string_view text, bool at_start, const piece_sink& next) const {
    const auto emit = [&](std::string_view piece, bool starts) {
      next(bytes_to_characters(piece), starts);
    };
    if (cut_) {
      cut_->split(text, at_start, emit);
    } else {
      emit(text, at_start);
    }
  }

  bool add_prefix_space_;
  pre_tokenizer_pointer cut_;
};

class metaspace_cutting final : public pre_tokenizer {
 public:
  metaspace_cutting(std::string replacement, prepend_scheme scheme, bool split)
      : replacement_(std::move(replacement)), scheme_(scheme) {
    if (split) {
      cut_ = split_pre_tokenizer(pattern::literal(replacement_), split_behavior::merged_with_next);
    }
  }

  void split(std::string_view text, bool at_start, const piece_sink& next) const override {
    std::string marked;
    marked.reserve(text.size() + replacement_.size());
    if (scheme_ == prepend_scheme::always || (scheme_ == prepend_scheme::first && at_start)) {
      if (!text.starts_with(' ') && !text.starts_with(replacement_)) marked = replacement_;
    }
    for (const char c : text) {
      if (c == ' ') {
        marked += replacement_;
      } else {
        marked += c;
      }
    }
    if (cut_) {
      cut_->split(marked, at_start, next);
    } else {
      next(marked, at_start);
    }
  }

 private:
  std::string replacement_;
  prepend_scheme scheme_;
  pre_tokenizer_pointer cut_;
};

class cutting_sequence final : public pre_tokenizer {
 public:
  explicit cutting_sequence(std::vector<pre_tokenizer_pointer> steps) : steps_(std::move(steps)) {}

  void split(std::string_view text, bool at_start, const piece_sink& next) const override {
    from(0, text, at_start, next);
  }

 private:
  void from(std::size_t step, std::string_view text, bool at_start, const piece_sink& next) const {
    if (step == steps_.size()) return next(text, at_start);
    steps_[step]->split(text, at_start, [&](std::string_view piece, bool starts) {
      if (!piece.empty()) from(step + 1, piece, starts, next);
    });
  }

  std::vector<pre_tokenizer_pointer> steps_;
};

} // namespace

pre_tokenizer_pointer split_pre_tokenizer(pattern separator, split_behavior behavior,
                                          bool inverted) {
  return std::make_shared<split_cutting>(std::move(separator), behavior, inverted);
}

pre_tokenizer_pointer byte_level_pre_tokenizer(bool add_prefix_space, bool use_regex) {
  return std::make_shared<byte_level_cutting>(add_prefix_space, use_regex);
}

pre_tokenizer_pointer metaspace_pre_tokenizer(std::string replacement, prepend_scheme scheme,
                                              bool split) {
  return std::make_shared<metaspace_cutting>(std::move(replacement), scheme, split);
}

pre_tokenizer_pointer pre_tokenizer_sequence(std::vector<pre_tokenizer_pointer> steps) {
  return std::make_shared<cutting_sequence>(std::move(steps));
}

std::vector<std::string_view> pre_tokenizer_expressions(std::string_view name) {
  if (name == "llama-bpe") return {llama3_expression};
  if (name == "qwen2") return {qwen2_expression};
  if (name == "smollm") return {R"(\p{N})", gpt2_expression};
  if (name == "default")
    return {R"([\p{P}\$\+<=>\^~\|]+)", gpt2_expression, R"(\p{N}+)", "[0-9][0-9][0-9]"};
  return {};
}

pre_tokenizer_pointer named_pre_tokenizer(std::string_view name) {
  if (name == "gpt-2") return byte_level_pre_tokenizer(false, true);
  std::vector<pre_tokenizer_pointer> steps;
  for (const std::string_view expression : pre_tokenizer_expressions(name)) {
    steps.push_back(
        split_pre_tokenizer(pattern::regex(name, expression), split_behavior::isolated));
  }
  if (steps.empty()) return nullptr;
  steps.push_back(byte_level_pre_tokenizer(false, false));
  return pre_tokenizer_sequence(std::move(steps));
}

} // namespace ressvd_llm
