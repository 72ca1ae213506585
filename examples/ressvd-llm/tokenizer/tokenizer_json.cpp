// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/tokenizer_json.hpp"

#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "io/error.hpp"
#include "io/json_text.hpp"
#include "tokenizer/text_tokenizer.hpp"

namespace ressvd_llm {
namespace {

// A value of the file that knows where it stands, for messages. null counts as absent.
class json_node {
 public:
  json_node(const std::filesystem::path& file, const nlohmann::json& value, std::string path)
      : file_(file), value_(value), path_(std::move(path)) {}

  const std::filesystem::path& file() const { return file_; }
  const nlohmann::json& value() const { return value_; }

  bool has(const char* key) const {
    return value_.is_object() && value_.contains(key) && !value_[key].is_null();
  }

  json_node at(const char* key) const {
    if (!value_.is_object()) fail("is not an object");
    if (!has(key)) throw file_error(file_, "key '" + below(key) + "' is missing");
    return {file_, value_[key], below(key)};
  }

  std::vector<json_node> list(const char* key) const {
    const json_node array = at(key);
    if (!array.value_.is_array()) array.fail("is not a list");
    std::vector<json_node> items;
    for (const nlohmann::json& item : array.value_)
      items.emplace_back(file_, item, array.path_ + "[" + std::to_string(items.size()) + "]");
    return items;
  }

  std::string text() const {
    if (!value_.is_string()) fail("is not a text");
    return value_.get<std::string>();
  }
  std::string text(const char* key) const { return at(key).text(); }
  std::string text(const char* key, const char* otherwise) const {
    return has(key) ? text(key) : otherwise;
  }

  bool flag(const char* key) const {
    const json_node node = at(key);
    if (!node.value_.is_boolean()) node.fail("is neither true nor false");
    return node.value_.get<bool>();
  }
  bool flag(const char* key, bool otherwise) const { return has(key) ? flag(key) : otherwise; }

  std::int32_t id() const {
    constexpr std::int32_t largest = std::numeric_limits<std::int32_t>::max() - 1;
    if (!value_.is_number_unsigned() || value_.get<std::uint64_t>() > largest) {
      fail("is not a token id");
    }
    return value_.get<std::int32_t>();
  }

  // A text of one character.
  std::string character(const char* key) const {
    const std::string content = text(key);
    if (content.empty() || first_character(content) != content.size()) {
      at(key).fail("is not one character");
    }
    return content;
  }

  // The choice among named values.
  template <class T>
  T choice(const char* key, std::initializer_list<std::pair<std::string_view, T>> values) const {
    const std::string name = text(key);
    for (const auto& [known, value] : values) {
      if (name == known) return value;
    }
    at(key).fail("is '" + printable(name) + "', which is not supported");
  }

  [[noreturn]] void fail(const std::string& what) const {
    throw file_error(file_, "key '" + path_ + "' " + what);
  }
  [[noreturn]] void unsupported(const std::string& type) const {
    fail("is of type '" + printable(type) + "', which is not supported");
  }

 private:
  std::string below(const char* key) const { return path_.empty() ? key : path_ + "." + key; }

  const std::filesystem::path& file_;
  const nlohmann::json& value_;
  std::string path_;
};

pattern read_pattern(const json_node& node) {
  const json_node value = node.at("pattern");
  if (value.has("String")) return pattern::literal(value.text("String"));
  return pattern::regex(node.file(), value.text("Regex"));
}

template <class Step, class F>
std::vector<Step> read_steps(const json_node& node, const char* key, const F& read) {
  std::vector<Step> steps;
  for (const json_node& item : node.list(key))
    steps.push_back(read(item));
  return steps;
}

// How many steps a node has, in sequences too, and how many of a type.
std::size_t count_steps(const json_node& node, const char* steps, std::string_view type = {}) {
  if (!node.has(steps)) return type.empty() || node.text("type") == type ? 1 : 0;
  std::size_t count = 0;
  for (const json_node& item : node.list(steps))
    count += count_steps(item, steps, type);
  return count;
}

// Steps are nested calls, and ByteLevel doubles what it is given.
void require_few_steps(const json_node& node, const char* steps) {
  if (count_steps(node, steps) > 64) node.fail("has more than 64 steps");
  if (count_steps(node, steps, "ByteLevel") > 4) node.fail("has ByteLevel more than 4 times");
}

normalizer_pointer read_normalizer(const json_node& node) {
  const std::string type = node.text("type");
  if (type == "NFC") return unicode_normalizer(normal_form::nfc);
  if (type == "NFD") return unicode_normalizer(normal_form::nfd);
  if (type == "NFKC") return unicode_normalizer(normal_form::nfkc);
  if (type == "NFKD") return unicode_normalizer(normal_form::nfkd);
  if (type == "Lowercase") return lowercase_normalizer();
  if (type == "Prepend") {
    if (node.text("prepend").size() > 256) node.at("prepend").fail("is too long");
    return prepend_normalizer(node.text("prepend"));
  }
  if (type == "Replace") return replace_normalizer(read_pattern(node), node.text("content"));
  if (type == "Sequence") {
    return normalizer_sequence(
        read_steps<normalizer_pointer>(node, "normalizers", read_normalizer));
  }
  node.unsupported(type);
}

// Older files have add_prefix_space in place of prepend_scheme.
prepend_scheme read_scheme(const json_node& node) {
  const prepend_scheme scheme =
      node.has("prepend_scheme")
          ? node.choice<prepend_scheme>("prepend_scheme", {{"first", prepend_scheme::first},
                                                           {"never", prepend_scheme::never},
                                                           {"always", prepend_scheme::always}})
          : prepend_scheme::always;
  if (!node.flag("add_prefix_space", true) && scheme != prepend_scheme::never) {
    node.at("add_prefix_space").fail("is false, but 'prepend_scheme' is not \"never\"");
  }
  return scheme;
}

pre_tokenizer_pointer read_pre_tokenizer(const json_node& node) {
  const std::string type = node.text("type");
  const auto split = [&](std::string_view expression, split_behavior behavior,
                         bool inverted = false) {
    return split_pre_tokenizer(pattern::regex(node.file(), expression), behavior, inverted);
  };
  if (type == "ByteLevel") {
    return byte_level_pre_tokenizer(node.flag("add_prefix_space"), node.flag("use_regex", true));
  }
  if (type == "Split") {
    const auto behavior = node.choice<split_behavior>(
        "behavior", {{"Isolated", split_behavior::isolated},
                     {"Removed", split_behavior::removed},
                     {"MergedWithPrevious", split_behavior::merged_with_previous},
                     {"MergedWithNext", split_behavior::merged_with_next},
                     {"Contiguous", split_behavior::contiguous}});
    return split_pre_tokenizer(read_pattern(node), behavior, node.flag("invert"));
  }
  if (type == "Digits") {
    return split(R"(\p{N})", node.flag("individual_digits") ? split_behavior::isolated
                                                            : split_behavior::contiguous);
  }
  if (type == "Whitespace") {
    // Rust's \w, which has the joiners besides.
    return split(R"([\w\x{200c}\x{200d}]+|[^\s\w\x{200c}\x{200d}]+)", split_behavior::removed,
                 true);
  }
  if (type == "WhitespaceSplit") return split(R"(\s)", split_behavior::removed);
  if (type == "Metaspace") {
    return metaspace_pre_tokenizer(node.character("replacement"), read_scheme(node),
                                   node.flag("split", true));
  }
  if (type == "Sequence") {
    return pre_tokenizer_sequence(
        read_steps<pre_tokenizer_pointer>(node, "pretokenizers", read_pre_tokenizer));
  }
  node.unsupported(type);
}

// Whether one of a node's steps, in sequences too, is what `is` looks for.
template <class F>
bool has_step(const json_node& node, const char* steps, const F& is) {
  if (!node.has(steps)) return is(node, node.text("type"));
  for (const json_node& item : node.list(steps)) {
    if (has_step(item, steps, is)) return true;
  }
  return false;
}

// "first" asks where a piece stood in the original text, which is not followed through steps that
// add or remove text.
void require_traceable_start(const json_node& root) {
  if (!root.has("pre_tokenizer")) return;
  const json_node cut = root.at("pre_tokenizer");
  const bool asks = has_step(cut, "pretokenizers", [](const json_node& step, const auto& type) {
    return type == "Metaspace" && read_scheme(step) == prepend_scheme::first;
  });
  if (!asks) return;
  const auto rewrites = [](const json_node&, const std::string& type) {
    return type == "Prepend" || type == "Replace" || type == "ByteLevel";
  };
  if (has_step(cut, "pretokenizers", rewrites) ||
      (root.has("normalizer") && has_step(root.at("normalizer"), "normalizers", rewrites))) {
    cut.fail(
        "has Metaspace with \"first\" beside steps that add or remove text, which is not "
        "supported");
  }
}

std::pair<std::string, std::string> read_merge(const nlohmann::json& merge, std::size_t number,
                                               const json_node& model) {
  if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
    return {merge[0].get<std::string>(), merge[1].get<std::string>()};
  }
  if (merge.is_string()) {
    const auto& text = merge.get_ref<const std::string&>();
    const std::size_t space = text.find(' ');
    if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos) {
      return {text.substr(0, space), text.substr(space + 1)};
    }
  }
  model.at("merges").fail("has an entry that is no pair of tokens, at " + std::to_string(number));
}

bpe_description read_model(const json_node& node) {
  // Old files do not say that theirs is BPE.
  const std::string type = node.text("type", node.has("merges") ? "BPE" : "");
  if (type != "BPE") node.unsupported(type);
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!node.text(key, "").empty()) node.at(key).fail("is not supported");
  }
  if (node.has("dropout") && node.at("dropout").value() != 0) {
    node.at("dropout").fail("is not supported");
  }
  bpe_description model;
  const json_node vocabulary = node.at("vocab");
  if (!vocabulary.value().is_object()) vocabulary.fail("is not an object");
  for (const auto& [token, id] : vocabulary.value().items()) {
    model.vocabulary.push_back(
        {token, json_node(node.file(), id, "model.vocab." + printable(token)).id()});
  }
  const json_node merges = node.at("merges");
  if (!merges.value().is_array()) merges.fail("is not a list");
  for (const nlohmann::json& merge : merges.value()) {
    if (merge.is_string() && merge.get_ref<const std::string&>().starts_with("#version")) continue;
    model.merges.push_back(read_merge(merge, model.merges.size(), node));
  }
  if (node.has("unk_token")) model.unknown = node.text("unk_token");
  model.fuse_unknown = node.flag("fuse_unk", false);
  model.byte_fallback = node.flag("byte_fallback", false);
  model.ignore_merges = node.flag("ignore_merges", false);
  return model;
}

std::vector<added_token> read_added_tokens(const json_node& root) {
  std::vector<added_token> tokens;
  if (!root.has("added_tokens")) return tokens;
  for (const json_node& item : root.list("added_tokens")) {
    tokens.push_back({.content = item.text("content"),
                      .id = item.at("id").id(),
                      .special = item.flag("special"),
                      .single_word = item.flag("single_word"),
                      .lstrip = item.flag("lstrip"),
                      .rstrip = item.flag("rstrip"),
                      .normalized = item.flag("normalized")});
  }
  return tokens;
}

// The package numbers the tokens that its model does not have itself, whatever the file says.
void require_usual_ids(const json_node& root, const bpe_description& model,
                       const std::vector<added_token>& added) {
  const nlohmann::json& vocabulary = root.at("model").at("vocab").value();
  auto next = static_cast<std::int64_t>(model.vocabulary.size());
  for (const added_token& token : added) {
    if (vocabulary.contains(token.content)) continue;
    if (token.id != next) {
      throw file_error(root.file(), "the added token '" + printable(token.content) +
                                        "' has the id " + std::to_string(token.id) + " where " +
                                        std::to_string(next) + " is the next");
    }
    ++next;
  }
}

// The ids before the text. Those behind it end a text, which a prompt does not.
void read_template(const json_node& node, std::vector<std::int32_t>& prefix) {
  const std::string type = node.text("type");
  if (type == "ByteLevel") return;
  if (type == "Sequence") {
    for (const json_node& item : node.list("processors"))
      read_template(item, prefix);
    return;
  }
  if (type != "TemplateProcessing") node.unsupported(type);
  const json_node known = node.at("special_tokens");
  bool before = true;
  std::vector<std::int32_t> ids;
  for (const json_node& item : node.list("single")) {
    if (item.has("Sequence")) {
      if (!before || item.at("Sequence").text("id") != "A") item.fail("is not supported");
      before = false;
      continue;
    }
    const std::string name = item.at("SpecialToken").text("id");
    const json_node token = known.at(name.c_str());
    for (const json_node& id : token.list("ids")) {
      if (before) ids.push_back(id.id());
    }
  }
  if (before) node.at("single").fail("has no place for the text");
  prefix.insert(prefix.begin(), ids.begin(), ids.end());
}

decoder_pointer read_decoder(const json_node& node) {
  const std::string type = node.text("type");
  if (type == "ByteLevel") return byte_level_decoder();
  if (type == "ByteFallback") return byte_fallback_decoder();
  if (type == "Fuse") return fuse_decoder();
  if (type == "Metaspace") {
    return metaspace_decoder(node.character("replacement"),
                             read_scheme(node) != prepend_scheme::never);
  }
  if (type == "Replace") return replace_decoder(read_pattern(node), node.text("content"));
  if (type == "Strip") {
    return strip_decoder(node.character("content"), static_cast<std::size_t>(node.at("start").id()),
                         static_cast<std::size_t>(node.at("stop").id()));
  }
  if (type == "Sequence") {
    return decoder_sequence(read_steps<decoder_pointer>(node, "decoders", read_decoder));
  }
  node.unsupported(type);
}

tokenizer_parts read_parts(const json_node& root) {
  tokenizer_parts parts;
  parts.model = read_model(root.at("model"));
  parts.added = read_added_tokens(root);
  require_usual_ids(root, parts.model, parts.added);
  if (root.has("normalizer")) {
    require_few_steps(root.at("normalizer"), "normalizers");
    parts.normalize = read_normalizer(root.at("normalizer"));
  }
  if (root.has("pre_tokenizer")) {
    require_few_steps(root.at("pre_tokenizer"), "pretokenizers");
    parts.cut = read_pre_tokenizer(root.at("pre_tokenizer"));
  }
  require_traceable_start(root);
  parts.prompt_prefix.emplace();
  if (root.has("post_processor")) read_template(root.at("post_processor"), *parts.prompt_prefix);
  if (root.has("decoder")) {
    require_few_steps(root.at("decoder"), "decoders");
    parts.decode = read_decoder(root.at("decoder"));
  }
  return parts;
}

// A word for each step that byte-level tokenizers are known to have, and others for others.
void describe_steps(const json_node& node, std::vector<std::string>& words) {
  const std::string type = node.text("type");
  if (type == "Sequence") {
    for (const json_node& item : node.list("pretokenizers"))
      describe_steps(item, words);
  } else if (type == "ByteLevel" && !node.flag("add_prefix_space")) {
    words.emplace_back(node.flag("use_regex", true) ? "bytes of words" : "bytes");
  } else if (type == "Digits" && node.flag("individual_digits")) {
    words.emplace_back("digits");
  } else if (type == "Split" && node.text("behavior") == "Isolated" && !node.flag("invert") &&
             node.at("pattern").has("Regex")) {
    words.push_back(node.at("pattern").text("Regex"));
  } else {
    words.push_back("another " + type);
  }
}

// The name under which llama.cpp has the pre-tokenizer.
std::string gguf_name_of_steps(const json_node& node) {
  std::vector<std::string> words;
  describe_steps(node, words);
  using steps = std::vector<std::string>;
  if (words == steps{"bytes of words"}) return "gpt-2";
  if (words == steps{"digits", "bytes of words"}) return "smollm";
  if (words == steps{std::string(llama3_expression), "bytes"}) return "llama-bpe";
  if (words == steps{std::string(qwen2_expression), "bytes"}) return "qwen2";
  node.fail("cuts texts in a way that has no name in GGUF");
}

} // namespace

std::unique_ptr<tokenizer> parse_tokenizer_json(const std::filesystem::path& file,
                                                std::string_view text) {
  const nlohmann::json content = parse_json(file, text);
  if (!content.is_object()) throw file_error(file, "is not a JSON object");
  try {
    return make_text_tokenizer(read_parts(json_node(file, content, "")));
  } catch (const std::invalid_argument& error) {
    throw file_error(file, error.what());
  }
}

gguf_tokenizer gguf_tokenizer_of_json(const std::filesystem::path& file, std::string_view text,
                                      std::optional<std::int32_t> bos) {
  const std::unique_ptr<tokenizer> whole = parse_tokenizer_json(file, text);
  const nlohmann::json content = parse_json(file, text);
  const json_node root(file, content, "");
  const json_node model = root.at("model");
  const tokenizer_parts parts = read_parts(root);
  if (parts.model.byte_fallback || !root.has("pre_tokenizer")) {
    throw file_error(file, "is not byte-level BPE, which GGUF can say");
  }
  gguf_tokenizer result;
  result.model = "gpt2";
  result.pre = gguf_name_of_steps(root.at("pre_tokenizer"));
  // Under this name alone llama.cpp looks pieces up as a whole.
  if (parts.model.ignore_merges != (result.pre == "llama-bpe")) {
    model.fail("has a value of 'ignore_merges' that GGUF cannot say");
  }
  const auto add = [&](std::int32_t id, const std::string& token, gguf_token_kind kind) {
    const auto at = static_cast<std::size_t>(id);
    result.tokens[at] = token;
    result.kinds[at] = kind;
  };
  const auto end = static_cast<std::size_t>(whole->vocab());
  // Ids without a token may be as many as an id is large.
  if (end > 2 * (parts.model.vocabulary.size() + parts.added.size()) + 65'536) {
    model.fail("has ids far beyond its tokens");
  }
  for (std::size_t i = 0; i < end; ++i)
    result.tokens.push_back("[PAD" + std::to_string(i) + "]");
  result.kinds.assign(end, gguf_token_kind::unused);
  for (const vocabulary_entry& entry : parts.model.vocabulary)
    add(entry.id, entry.token, gguf_token_kind::normal);
  for (const added_token& token : parts.added) {
    if (token.single_word || token.lstrip || token.rstrip) {
      throw file_error(file,
                       "the added token '" + printable(token.content) +
                           "' takes white space along or stands alone, which GGUF cannot say");
    }
    add(token.id, token.content,
        token.special ? gguf_token_kind::control : gguf_token_kind::user_defined);
  }
  for (const auto& [left, right] : parts.model.merges)
    result.merges.push_back(left + " " + right);
  result.add_bos = !parts.prompt_prefix->empty();
  if (*result.add_bos && (!bos || *parts.prompt_prefix != std::vector{*bos})) {
    root.at("post_processor").fail("begins texts with other tokens than the model's first");
  }
  return result;
}

} // namespace ressvd_llm
