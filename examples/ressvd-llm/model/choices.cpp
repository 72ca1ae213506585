// SPDX-License-Identifier: Apache-2.0
#include "model/choices.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <utility>

#include "tokenizer/utf8.hpp"

namespace ressvd_llm {
namespace {

// Windows of one length are passed together; others are filled up to the next multiple. What
// follows a token does not change it.
constexpr std::int64_t length_step = 8;

// What Python's rstrip removes.
bool is_python_space(char32_t character) {
  return is_white_space(character) || (character >= 0x1c && character <= 0x1f);
}

std::size_t size_without_space(std::string_view text) {
  while (!text.empty()) {
    const std::size_t length = last_character(text);
    if (!is_python_space(code_point(text.substr(text.size() - length)))) break;
    text.remove_suffix(length);
  }
  return text.size();
}

// One input of the model and the continuations that it scores.
struct scored_input {
  std::vector<std::int32_t> ids;
  std::vector<std::size_t> continuations;
};

// Context and continuation but for its last token, as far as the model reaches.
std::vector<std::int32_t> input_of(const continuation& c, std::int64_t max_length) {
  if (c.context.empty() || c.text.empty()) {
    throw std::invalid_argument("choices: a context or a continuation has no tokens");
  }
  const auto length = static_cast<std::int64_t>(c.text.size());
  if (length > max_length) {
    throw std::invalid_argument("choices: a continuation of " + std::to_string(length) +
                                " tokens is longer than " + std::to_string(max_length));
  }
  std::vector<std::int32_t> ids = c.context;
  ids.insert(ids.end(), c.text.begin(), c.text.end() - 1);
  if (std::cmp_greater(ids.size(), max_length)) ids.erase(ids.begin(), ids.end() - max_length);
  return ids;
}

std::vector<scored_input> group_inputs(std::span<const continuation> continuations,
                                       std::int64_t max_length) {
  std::vector<scored_input> all;
  for (std::size_t i = 0; i < continuations.size(); ++i)
    all.push_back({input_of(continuations[i], max_length), {i}});
  std::ranges::stable_sort(all, [](const scored_input& a, const scored_input& b) {
    return a.ids.size() != b.ids.size() ? a.ids.size() < b.ids.size() : a.ids < b.ids;
  });
  std::vector<scored_input> distinct;
  for (scored_input& input : all) {
    if (!distinct.empty() && distinct.back().ids == input.ids) {
      distinct.back().continuations.push_back(input.continuations.front());
    } else {
      distinct.push_back(std::move(input));
    }
  }
  return distinct;
}

// Inputs of about one length on their way through the layers.
struct bucket {
  std::span<const scored_input> inputs;
  std::int64_t length = 0;
  engine_matrix hidden;

  std::int64_t tokens() const { return static_cast<std::int64_t>(inputs.size()) * length; }
};

std::int64_t filled_length(std::size_t length, std::int64_t positions) {
  const auto exact = static_cast<std::int64_t>(length);
  const std::int64_t filled = (exact + length_step - 1) / length_step * length_step;
  return std::max(exact, std::min(filled, positions));
}

// The first inputs of `rest` whose hidden states fit; at least one.
std::vector<bucket> take_round(std::span<const scored_input>& rest, const model_config& config,
                               std::uint64_t memory_limit) {
  const auto token_bytes = static_cast<std::uint64_t>(config.hidden_size) * sizeof(float);
  std::vector<bucket> round;
  std::uint64_t bytes = 0;
  std::size_t taken = 0;
  for (; taken < rest.size(); ++taken) {
    const std::int64_t length = filled_length(rest[taken].ids.size(), config.max_positions);
    bytes += static_cast<std::uint64_t>(length) * token_bytes;
    if (bytes > memory_limit && taken > 0) break;
    if (round.empty() || round.back().length != length) {
      round.push_back({.inputs = rest.subspan(taken, 0), .length = length, .hidden = {}});
    }
    bucket& last = round.back();
    last.inputs = {last.inputs.data(), last.inputs.size() + 1};
  }
  rest = rest.subspan(taken);
  return round;
}

void embed(const language_model& model, forward_engine& engine, bucket& b) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(b.tokens()), 0);
  for (std::size_t i = 0; i < b.inputs.size(); ++i)
    std::ranges::copy(b.inputs[i].ids, ids.begin() + static_cast<std::ptrdiff_t>(i) * b.length);
  b.hidden = engine.embed(model.outer(), ids, b.length);
}

// Adds up what the last hidden states say of each continuation's tokens.
void score(const language_model& model, forward_engine& engine, const bucket& b,
           std::span<const continuation> continuations, std::span<double> sums) {
  const std::int64_t width = model.config().hidden_size;
  const std::vector<float> all = b.hidden.values();
  std::vector<float> hidden;
  std::vector<std::int32_t> targets;
  std::vector<std::size_t> owners;
  for (std::size_t i = 0; i < b.inputs.size(); ++i) {
    const scored_input& input = b.inputs[i];
    for (const std::size_t c : input.continuations) {
      const std::vector<std::int32_t>& text = continuations[c].text;
      const std::size_t first =
          i * static_cast<std::size_t>(b.length) + input.ids.size() - text.size();
      const float* const states = all.data() + first * static_cast<std::size_t>(width);
      hidden.insert(hidden.end(), states,
                    states + static_cast<std::ptrdiff_t>(text.size()) * width);
      targets.insert(targets.end(), text.begin(), text.end());
      owners.insert(owners.end(), text.size(), c);
    }
  }
  for_each_logits(model, engine, engine.upload(std::move(hidden)),
                  [&](const engine_matrix& logits, std::int64_t start) {
                    const auto from = static_cast<std::size_t>(start);
                    const auto losses = next_token_losses(
                        logits, {targets.data() + from, static_cast<std::size_t>(logits.rows())});
                    for (std::size_t i = 0; i < losses.size(); ++i)
                      sums[owners[from + i]] -= losses[i];
                  });
}

std::int64_t characters_of(std::string_view text) {
  std::int64_t count = 0;
  for (; !text.empty(); ++count)
    text.remove_prefix(first_character(text));
  return count;
}

// The first of the highest, as NumPy has it.
template <class F>
std::size_t best_choice(std::span<const double> sums, const F& length) {
  std::size_t best = 0;
  double highest = -std::numeric_limits<double>::infinity();
  for (std::size_t i = 0; i < sums.size(); ++i) {
    const double value = sums[i] / length(i);
    if (i == 0 || value > highest) {
      best = i;
      highest = value;
    }
  }
  return best;
}

void count(accuracy& of, bool right) {
  of.right += right ? 1 : 0;
  ++of.items;
}

} // namespace

continuation encode_continuation(const tokenizer& tokens, std::span<const std::int32_t> prefix,
                                 std::span<const std::int32_t> first, std::string_view context,
                                 std::string_view text) {
  continuation result;
  if (context.empty()) {
    result.context.assign(first.begin(), first.end());
    result.text = tokens.encode_whole(text);
    if (!result.context.empty() && !result.text.empty() &&
        result.text.front() == result.context.front()) {
      result.text.erase(result.text.begin());
    }
  } else {
    const std::string whole = to_utf8(std::string(context) + std::string(text));
    const std::string alone = to_utf8(context);
    const auto encoded = [&](std::string_view part) {
      std::vector<std::int32_t> ids(prefix.begin(), prefix.end());
      const std::vector<std::int32_t> rest = tokens.encode_whole(part);
      ids.insert(ids.end(), rest.begin(), rest.end());
      return ids;
    };
    const std::string stripped = alone.substr(0, size_without_space(alone));
    result.context =
        stripped.empty() ? std::vector(prefix.begin(), prefix.end()) : encoded(stripped);
    std::vector<std::int32_t> ids = encoded(whole);
    const std::size_t cut = std::min(result.context.size(), ids.size());
    result.text.assign(ids.begin() + static_cast<std::ptrdiff_t>(cut), ids.end());
  }
  if (result.context.empty()) throw std::invalid_argument("its context has no tokens");
  if (result.text.empty()) throw std::invalid_argument("a choice adds no tokens to its context");
  return result;
}

std::vector<double> log_probabilities(const language_model& model, forward_engine& engine,
                                      std::span<const continuation> continuations,
                                      const choice_options& options) {
  std::vector<double> sums(continuations.size(), 0.0);
  const std::vector<scored_input> inputs = group_inputs(continuations, options.max_length);
  std::span<const scored_input> rest(inputs);
  const std::int64_t layers = model.config().layers;
  const auto all = static_cast<double>(inputs.size());
  while (!rest.empty()) {
    const auto done = static_cast<double>(inputs.size() - rest.size());
    std::vector<bucket> round = take_round(rest, model.config(), options.evaluation.memory_limit);
    const double taken = all - done - static_cast<double>(rest.size());
    for (bucket& b : round)
      embed(model, engine, b);
    for (std::int64_t layer = 0; layer < layers; ++layer) {
      const layer_weights& weights = model.layer(layer);
      for (bucket& b : round)
        engine.layer(weights, b.hidden, b.length);
      if (options.evaluation.progress) {
        const double share = static_cast<double>(layer + 1) / static_cast<double>(layers + 1);
        options.evaluation.progress((done + taken * share) / all);
      }
    }
    for (const bucket& b : round)
      score(model, engine, b, continuations, sums);
  }
  if (options.evaluation.progress) options.evaluation.progress(1.0);
  return sums;
}

double accuracy::value() const {
  return static_cast<double>(right) / static_cast<double>(items);
}

double accuracy::standard_error() const {
  if (items < 2) return 0;
  const double p = value();
  return std::sqrt(p * (1 - p) / static_cast<double>(items - 1));
}

std::vector<task_result> score_tasks(std::span<const choice_item> items,
                                     std::span<const double> log_probabilities) {
  std::vector<task_result> results;
  for (const choice_item& item : items) {
    const std::span<const double> sums = log_probabilities.first(item.choices.size());
    log_probabilities = log_probabilities.subspan(item.choices.size());
    auto found = std::ranges::find(results, item.task, &task_result::task);
    if (found == results.end()) {
      results.push_back({.task = item.task, .plain = {}, .by_characters = {}, .by_bytes = {}});
      found = results.end() - 1;
    }
    const auto right = [&](const auto& length) { return best_choice(sums, length) == item.answer; };
    count(found->plain, right([](std::size_t) { return 1.0; }));
    count(found->by_characters, right([&](std::size_t i) {
            return static_cast<double>(characters_of(to_utf8(item.choices[i])));
          }));
    count(found->by_bytes,
          right([&](std::size_t i) { return static_cast<double>(item.choices[i].size()); }));
  }
  return results;
}

} // namespace ressvd_llm
