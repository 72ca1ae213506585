// SPDX-License-Identifier: Apache-2.0
#include <functional>
#include <limits>
#include <optional>

#include <nlohmann/json.hpp>

#include "fixture.hpp"
#include "io/checkpoint_writer.hpp"
#include "io/error.hpp"
#include "llm/io/temporary.hpp"
#include "support/catch.hpp"

using namespace ressvd_llm;
using namespace ressvd_llm::testing;

namespace {

// What to write instead of a tensor while a checkpoint is copied; false keeps the tensor as it is.
using tensor_change = std::function<bool(checkpoint_writer& writer, const tensor_view& tensor)>;

void copy_model(const fixture& f, const std::filesystem::path& output,
                const tensor_change& change) {
  checkpoint_writer writer(output, f.directory);
  const checkpoint source = checkpoint::open(f.directory);
  for (const std::string& name : source.names())
    if (!change(writer, source.at(name))) writer.add(source.at(name));
  writer.copy_file(f.directory / "config.json");
  writer.commit();
}

std::optional<linear_module> module_of(const model_config& config, const std::string& name) {
  for (std::int64_t layer = 0; layer < config.layers; ++layer)
    for (const linear_module& module : linear_modules(config, layer))
      if (module.weight_name() == name || module.bias_name() == name) return module;
  return std::nullopt;
}

// H = I − 2hhᵀ/‖h‖², orthonormal and its own inverse; n × n.
std::vector<float> reflection(std::int64_t n) {
  const std::vector<float> h = random_values(n, 9);
  double square = 0.0;
  for (const float value : h)
    square += static_cast<double>(value) * static_cast<double>(value);
  std::vector<float> result;
  for (std::size_t i = 0; i < h.size(); ++i)
    for (std::size_t j = 0; j < h.size(); ++j)
      result.push_back(
          static_cast<float>((i == j ? 1.0 : 0.0) -
                             2.0 * static_cast<double>(h[i]) * static_cast<double>(h[j]) / square));
  return result;
}

} // namespace

TEST_CASE("a model factored at full rank computes what the dense one does") {
  for (const std::string& name : families) {
    CAPTURE(name);
    const fixture f(name);
    const llm_test::temporary_directory scratch;
    const std::filesystem::path output = scratch / "factored";
    std::int64_t factored = 0;
    copy_model(f, output, [&](checkpoint_writer& writer, const tensor_view& tensor) {
      const std::optional<linear_module> module = module_of(f.config, tensor.name);
      if (!module) return false;
      if (tensor.name == module->bias_name()) {
        std::vector<float> bias(static_cast<std::size_t>(module->out));
        decode(tensor.type, tensor.data, bias);
        writer.add(module->u_bias_name(), {module->out}, bias, dtype::f32);
        return true;
      }
      // W = (WH)H.
      const std::vector<float> v = reflection(module->in);
      std::vector<float> u(static_cast<std::size_t>(module->out * module->in));
      multiply_add(weight_matrix(tensor).values().data(), module->out, {module->in, module->in, v},
                   u.data());
      writer.add(module->u_name(), {module->out, module->in}, u, dtype::f32);
      writer.add(module->v_name(), {module->in, module->in}, v, dtype::f32);
      ++factored;
      return true;
    });
    CHECK(factored == f.config.layers * (f.config.family == model_family::opt ? 6 : 7));
    for (const std::uint64_t limit : {std::uint64_t{1} << 30, std::uint64_t{0}}) {
      const language_model model = language_model::open(output, {.memory_limit = limit});
      CHECK(model.layer(0)[projection::q].factored());
      // The factors' own rounding adds to that of the sums.
      CHECK(relative_error(run(model, f.tokens, f.window()), f.logits) < 1e-4);
    }
  }
}

TEST_CASE("factors have the field's names") {
  const fixture llama("llama");
  const std::vector<linear_module> modules = linear_modules(llama.config, 1);
  REQUIRE(modules.size() == 7);
  CHECK(modules[0].prefix == "model.layers.1.self_attn.q_proj");
  CHECK(modules[0].u_name() == "model.layers.1.self_attn.q_u_proj.weight");
  CHECK(modules[0].v_name() == "model.layers.1.self_attn.q_v_proj.weight");
  CHECK(modules[0].u_bias_name() == "model.layers.1.self_attn.q_u_proj.bias");
  CHECK(modules[6].u_name() == "model.layers.1.mlp.down_u_proj.weight");
  const fixture opt("opt");
  const std::vector<linear_module> others = linear_modules(opt.config, 0);
  REQUIRE(others.size() == 6);
  CHECK(others[3].u_name() == "model.decoder.layers.0.self_attn.out_u_proj.weight");
  CHECK(others[4].u_name() == "model.decoder.layers.0.fc1_u.weight");
  CHECK(others[5].v_name() == "model.decoder.layers.0.fc2_v.weight");
}

TEST_CASE("a replaced layer belongs to one copy of the model only") {
  const fixture f("qwen3");
  const language_model original = language_model::open(f.directory);
  language_model variant = original;
  variant.replace_layer(1, original.layer(0));
  CHECK(relative_error(run(original, f.tokens, f.window()), f.logits) < 1e-4);
  CHECK(relative_error(run(variant, f.tokens, f.window()), f.logits) > 0.1);
}

TEST_CASE("a checkpoint that contradicts its config is refused by tensor name") {
  const fixture f("llama");
  const llm_test::temporary_directory scratch;
  const std::filesystem::path output = scratch / "model";
  const std::string weight = "model.layers.1.self_attn.k_proj.weight";
  const auto message = [&](const tensor_change& change, std::uint64_t limit) -> std::string {
    std::filesystem::remove_all(output);
    copy_model(f, output, change);
    try {
      language_model::open(output, {.memory_limit = limit}).layer(1);
    } catch (const file_error& error) {
      return error.what();
    }
    return "no error";
  };
  for (const std::uint64_t limit : {std::uint64_t{1} << 30, std::uint64_t{0}}) {
    CAPTURE(limit);
    CHECK_THAT(message([&](auto&, const tensor_view& t) { return t.name == weight; }, limit),
               contains_text(weight));
    CHECK_THAT(
        message(
            [](auto&, const tensor_view& t) { return t.name == "model.layers.1.mlp.up_proj.bias"; },
            limit),
        contains_text("model.layers.1.mlp.up_proj.bias"));
    CHECK_THAT(message(
                   [&](checkpoint_writer& writer, const tensor_view& t) {
                     if (t.name != weight) return false;
                     writer.add(weight, {t.shape[0] / 2, t.shape[1] * 2}, weight_matrix(t).values(),
                                dtype::f32);
                     return true;
                   },
                   limit),
               contains_text(weight));
    CHECK_THAT(message(
                   [&](checkpoint_writer& writer, const tensor_view& t) {
                     if (t.name != weight) return false;
                     std::vector<float> values = weight_matrix(t).values();
                     values[77] = std::numeric_limits<float>::infinity();
                     tensor_view broken = t;
                     broken.type = dtype::f32;
                     broken.data = std::as_bytes(std::span(values)).data();
                     writer.add(broken);
                     return true;
                   },
                   limit),
               contains_text(weight) && contains_text("finite"));
    // Dense and factored at once.
    CHECK_THAT(message(
                   [&](checkpoint_writer& writer, const tensor_view& t) {
                     if (t.name == weight)
                       writer.add("model.layers.1.self_attn.k_u_proj.weight", {t.shape[0], 1},
                                  random_values(t.shape[0], 1), dtype::f32);
                     return false;
                   },
                   limit),
               contains_text(weight) && contains_text("beside the factors"));
    // Left factor without the right one.
    CHECK_THAT(message(
                   [&](checkpoint_writer& writer, const tensor_view& t) {
                     if (t.name == "model.layers.1.self_attn.k_proj.bias") {
                       std::vector<float> bias(static_cast<std::size_t>(t.shape[0]));
                       writer.add("model.layers.1.self_attn.k_u_proj.bias", t.shape, bias,
                                  dtype::f32);
                       return true;
                     }
                     if (t.name != weight) return false;
                     writer.add("model.layers.1.self_attn.k_u_proj.weight", {t.shape[0], 1},
                                random_values(t.shape[0], 1), dtype::f32);
                     return true;
                   },
                   limit),
               contains_text("k_v_proj.weight"));
  }
}

TEST_CASE("a config cannot ask for more than the checkpoint holds") {
  const fixture f("qwen3");
  const llm_test::temporary_directory scratch;
  const std::filesystem::path output = scratch / "model";
  copy_model(f, output, [](auto&, const tensor_view&) { return false; });
  const auto refusal = [&](const char* key, std::int64_t value) {
    auto config = nlohmann::json::parse(f.config.text);
    config.erase("layer_types"); // would have to be as long
    config[key] = value;
    llm_test::write(output / "config.json", config.dump());
    return llm_test::file_error_of([&] { language_model::open(output); });
  };
  // Before anything is computed from them: a loop over these layers would not end.
  constexpr std::int64_t largest = 2'147'483'647;
  CHECK_THAT(refusal("num_hidden_layers", largest), contains_text("q_proj.weight: missing"));
  CHECK_THAT(refusal("vocab_size", largest), contains_text("embed_tokens.weight: shape ["));
  CHECK_THAT(refusal("hidden_size", largest), contains_text("embed_tokens.weight: shape ["));
  CHECK_THAT(refusal("intermediate_size", largest), contains_text("gate_proj.weight: shape ["));
  CHECK_THAT(refusal("num_attention_heads", largest - 1), contains_text("num_attention_heads"));
}

TEST_CASE("a bias the config does not announce is refused") {
  const fixture f("qwen3");
  const llm_test::temporary_directory scratch;
  const std::filesystem::path output = scratch / "model";
  copy_model(f, output, [](checkpoint_writer& writer, const tensor_view& t) {
    if (t.name == "model.layers.0.self_attn.q_proj.weight")
      writer.add("model.layers.0.self_attn.q_proj.bias", {t.shape[0]}, random_values(t.shape[0], 1),
                 dtype::f32);
    return false;
  });
  CHECK_THROWS_WITH(language_model::open(output).layer(0),
                    contains_text("q_proj.bias") && contains_text("no bias"));
}
