// SPDX-License-Identifier: Apache-2.0
//
// Any text as a config.json: refused, or a config whose numbers can be computed with, and whose
// note on compression survives being written again.
#include "io/config.hpp"

#include <cmath>
#include <limits>
#include <string>

#include <nlohmann/json.hpp>

#include "fuzz.hpp"
#include "io/error.hpp"

namespace {

void check(const ressvd_llm::model_config& config) {
  constexpr std::int64_t largest = std::numeric_limits<std::int32_t>::max();
  for (const std::int64_t extent :
       {config.hidden_size, config.intermediate_size, config.layers, config.heads, config.kv_heads,
        config.head_dim, config.vocab, config.max_positions, config.heads * config.head_dim}) {
    fuzz::require(extent >= 1 && extent <= largest);
  }
  fuzz::require(config.heads % config.kv_heads == 0);
  fuzz::require(std::isfinite(config.norm_eps) && config.norm_eps > 0);
  fuzz::require(std::isfinite(config.rope.theta) && config.rope.theta > 0);
  fuzz::require(config.rope.factor > 0);
  fuzz::require(!config.sliding_window || *config.sliding_window >= 1);
  fuzz::require(!config.bos || (*config.bos >= 0 && *config.bos < config.vocab));
  for (const std::int32_t id : config.eos)
    fuzz::require(id >= 0 && id < config.vocab);
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const auto config = ressvd_llm::parse_config(
        "config.json", std::string(reinterpret_cast<const char*>(data), size));
    check(config);
    if (!config.compressed) return 0;
    auto json = nlohmann::json::parse(config.text);
    json["ressvd"] = nlohmann::json::parse(ressvd_llm::to_json(*config.compressed).dump());
    const auto again = ressvd_llm::parse_config("config.json", json.dump());
    fuzz::require(again.compressed && again.compressed->ranks == config.compressed->ranks &&
                  again.compressed->method == config.compressed->method);
  } catch (const ressvd_llm::file_error& error) {
    fuzz::require_message(error);
  }
  return 0;
}
