// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/json_from_gguf.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <tuple>
#include <vector>

#include <nlohmann/json.hpp>

#include "tokenizer/bpe.hpp"
#include "tokenizer/gguf_text.hpp"
#include "tokenizer/pre_tokenizer.hpp"
#include "tokenizer/text_tokenizer.hpp"

namespace ressvd_llm {
namespace {

using nlohmann::ordered_json;

constexpr const char* word_space = "\xe2\x96\x81";

// Every way in which two tokens make a third, the highest score first: what sentencepiece does with
// neighbours.
ordered_json merges_of_scores(const bpe_description& model) {
  text_map<std::size_t> entries;
  for (std::size_t i = 0; i < model.vocabulary.size(); ++i) {
    if (std::isfinite(model.scores[i])) entries.emplace(model.vocabulary[i].token, i);
  }
  using pair = std::tuple<float, std::size_t, std::size_t>; // −score, left, right
  std::vector<pair> pairs;
  for (const auto& [token, entry] : entries) {
    for (std::size_t at = 1; at < token.size(); ++at) {
      const auto left = entries.find(std::string_view(token).substr(0, at));
      const auto right = entries.find(std::string_view(token).substr(at));
      if (left != entries.end() && right != entries.end())
        pairs.emplace_back(-model.scores[entry], left->second, right->second);
    }
  }
  std::ranges::sort(pairs);
  auto merges = ordered_json::array();
  for (const auto& [score, left, right] : pairs)
    merges.push_back({model.vocabulary[left].token, model.vocabulary[right].token});
  return merges;
}

ordered_json merges_of(const bpe_description& model) {
  if (!model.scores.empty()) return merges_of_scores(model);
  auto merges = ordered_json::array();
  for (const auto& [left, right] : model.merges)
    merges.push_back({left, right});
  return merges;
}

ordered_json byte_level(bool use_regex) {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", false},
          {"trim_offsets", true},
          {"use_regex", use_regex}};
}

ordered_json pre_tokenizer_of(std::string_view name) {
  if (name == "gpt-2") return byte_level(true);
  ordered_json steps = ordered_json::array();
  for (const std::string_view expression : pre_tokenizer_expressions(name)) {
    steps.push_back({{"type", "Split"},
                     {"pattern", {{"Regex", expression}}},
                     {"behavior", "Isolated"},
                     {"invert", false}});
  }
  steps.push_back(byte_level(false));
  return {{"type", "Sequence"}, {"pretokenizers", steps}};
}

ordered_json replacing(const char* from, const char* to) {
  return {{"type", "Replace"}, {"pattern", {{"String", from}}}, {"content", to}};
}

ordered_json template_of(const gguf_tokenizer& description, std::int32_t first) {
  const std::string& token = description.tokens[static_cast<std::size_t>(first)];
  const auto sequence = [](const char* name) {
    return ordered_json{{"Sequence", {{"id", name}, {"type_id", 0}}}};
  };
  const ordered_json special{{"SpecialToken", {{"id", token}, {"type_id", 0}}}};
  return {{"type", "TemplateProcessing"},
          {"single", {special, sequence("A")}},
          {"pair", {special, sequence("A"), special, sequence("B")}},
          {"special_tokens", {{token, {{"id", token}, {"ids", {first}}, {"tokens", {token}}}}}}};
}

} // namespace

std::string tokenizer_json_of(const std::filesystem::path& file,
                              const gguf_tokenizer& description) {
  (void)make_gguf_tokenizer(file, description); // refuses parts that contradict each other
  const tokenizer_parts parts = gguf_tokenizer_parts(file, description);
  const bool byte_level_kind = description.model == "gpt2";
  ordered_json json{{"version", "1.0"}, {"truncation", nullptr}, {"padding", nullptr}};
  json["added_tokens"] = ordered_json::array();
  for (const added_token& added : parts.added) {
    json["added_tokens"].push_back({{"id", added.id},
                                    {"content", added.content},
                                    {"single_word", false},
                                    {"lstrip", false},
                                    {"rstrip", false},
                                    {"normalized", false},
                                    {"special", added.special}});
  }
  if (byte_level_kind) {
    json["normalizer"] = nullptr;
    json["pre_tokenizer"] = pre_tokenizer_of(description.pre);
  } else {
    const bool prefixed = description.add_space_prefix.value_or(true);
    ordered_json normalizers = ordered_json::array();
    if (prefixed) normalizers.push_back({{"type", "Prepend"}, {"prepend", word_space}});
    normalizers.push_back(replacing(" ", word_space));
    json["normalizer"] = {{"type", "Sequence"}, {"normalizers", normalizers}};
    json["pre_tokenizer"] = nullptr;
  }
  json["post_processor"] = parts.prompt_prefix && !parts.prompt_prefix->empty()
                               ? template_of(description, parts.prompt_prefix->front())
                               : ordered_json(nullptr);
  if (byte_level_kind) {
    json["decoder"] = byte_level(true);
  } else {
    ordered_json decoders{
        replacing(word_space, " "), {{"type", "ByteFallback"}}, {{"type", "Fuse"}}};
    if (description.add_space_prefix.value_or(true))
      decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
    json["decoder"] = {{"type", "Sequence"}, {"decoders", decoders}};
  }
  const bpe_description& model = parts.model;
  ordered_json vocabulary = ordered_json::object();
  for (const vocabulary_entry& entry : model.vocabulary)
    vocabulary[entry.token] = entry.id;
  json["model"] = {{"type", "BPE"},
                   {"dropout", nullptr},
                   {"unk_token", model.unknown ? ordered_json(*model.unknown) : nullptr},
                   {"continuing_subword_prefix", nullptr},
                   {"end_of_word_suffix", nullptr},
                   {"fuse_unk", model.fuse_unknown},
                   {"byte_fallback", model.byte_fallback},
                   {"ignore_merges", model.ignore_merges},
                   {"vocab", std::move(vocabulary)},
                   {"merges", merges_of(model)}};
  return json.dump() + "\n";
}

} // namespace ressvd_llm
