// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <functional>
#include <limits>
#include <optional>
#include <set>

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

// A pivoted matrix that keeps some rows of W, and W's replacement.
struct pivoted_parts {
  std::int64_t rank = 0;
  std::vector<float> c, z, dense;
  std::vector<std::int32_t> order;
};

pivoted_parts pivoted_from(const tensor_view& w) {
  const std::int64_t out = w.shape[0], in = w.shape[1];
  pivoted_parts p{.rank = std::min(out, in) / 2, .c = {}, .z = {}, .dense = {}, .order = {}};
  p.order = random_order(out, 3);
  p.c = random_values((out - p.rank) * p.rank, 4);
  p.dense.resize(static_cast<std::size_t>(out * in));
  const std::vector<float> rows = weight_matrix(w).values();
  for (std::int64_t i = 0; i < out; ++i) {
    float* const target = p.dense.data() + p.order[static_cast<std::size_t>(i)] * in;
    for (std::int64_t j = 0; j < in; ++j) {
      double sum = 0.0;
      for (std::int64_t k = 0; i >= p.rank && k < p.rank; ++k)
        sum += static_cast<double>(p.c[static_cast<std::size_t>((i - p.rank) * p.rank + k)]) *
               static_cast<double>(p.z[static_cast<std::size_t>(k * in + j)]);
      if (i < p.rank) {
        sum = static_cast<double>(rows[static_cast<std::size_t>(i * in + j)]);
        p.z.push_back(static_cast<float>(sum));
      }
      target[j] = static_cast<float>(sum);
    }
  }
  return p;
}

void write_pivoted(checkpoint_writer& writer, const linear_module& m, const pivoted_parts& p) {
  writer.add(m.c_name(), {m.out - p.rank, p.rank}, p.c, dtype::f32);
  writer.add(m.z_name(), {p.rank, m.in}, p.z, dtype::f32);
  writer.add(m.order_name(), {m.out}, p.order);
}

} // namespace

TEST_CASE("a model of pivoted matrices computes what its dense form does") {
  for (const std::string& name : families) {
    CAPTURE(name);
    const fixture f(name);
    const llm_test::temporary_directory scratch;
    copy_model(f, scratch / "dense", [&](checkpoint_writer& writer, const tensor_view& tensor) {
      const std::optional<linear_module> module = module_of(f.config, tensor.name);
      if (!module || tensor.name == module->bias_name()) return false;
      writer.add(tensor.name, tensor.shape, pivoted_from(tensor).dense, dtype::f32);
      return true;
    });
    copy_model(f, scratch / "pivoted", [&](checkpoint_writer& writer, const tensor_view& tensor) {
      const std::optional<linear_module> module = module_of(f.config, tensor.name);
      if (!module) return false;
      if (tensor.name == module->bias_name()) {
        tensor_view moved = tensor;
        moved.name = module->c_bias_name();
        writer.add(moved);
      } else {
        write_pivoted(writer, *module, pivoted_from(tensor));
      }
      return true;
    });
    const std::vector<float> expected =
        run(language_model::open(scratch / "dense"), f.tokens, f.window());
    for (const std::uint64_t limit : {std::uint64_t{1} << 30, std::uint64_t{0}}) {
      const language_model model =
          language_model::open(scratch / "pivoted", {.memory_limit = limit});
      CHECK(model.layer(0)[projection::q].pivoted());
      CHECK(model.layer(0)[projection::q].z.in_memory() == (limit > 0));
      CHECK(relative_error(run(model, f.tokens, f.window()), expected) < 1e-4);
    }
    const checkpoint source = checkpoint::open(scratch / "pivoted");
    const linear_module module = linear_modules(f.config, 0).front();
    CHECK(is_pivoted(source, module));
    const std::vector<std::string> names = parameter_names(source, f.config);
    CHECK(std::ranges::find(names, module.c_name()) != names.end());
    CHECK(std::ranges::find(names, module.order_name()) == names.end());
    CHECK(rank_of(source, module) == std::min(module.out, module.in) / 2);
  }
}

TEST_CASE("a pivoted matrix that is not whole is refused by tensor name") {
  const fixture f("llama");
  const llm_test::temporary_directory scratch;
  const std::filesystem::path output = scratch / "model";
  const linear_module m = linear_modules(f.config, 1)[1];
  REQUIRE(m.prefix.ends_with("k_proj"));
  REQUIRE(m.has_bias);
  // The whole model with this matrix pivoted, but for what `parts` changes or adds.
  using change = std::function<void(pivoted_parts&, std::set<std::string>&, checkpoint_writer&)>;
  const auto refusal = [&](const change& parts) {
    std::filesystem::remove_all(output);
    copy_model(f, output, [&](checkpoint_writer& writer, const tensor_view& t) {
      if (t.name == m.bias_name()) return true;
      if (t.name != m.weight_name()) return false;
      pivoted_parts p = pivoted_from(t);
      std::set<std::string> absent;
      parts(p, absent, writer);
      const std::int64_t r = p.rank;
      if (!absent.contains(m.c_name())) writer.add(m.c_name(), {m.out - r, r}, p.c, dtype::f32);
      if (!absent.contains(m.z_name())) writer.add(m.z_name(), {r, m.in}, p.z, dtype::f32);
      if (!absent.contains(m.order_name())) writer.add(m.order_name(), {m.out}, p.order);
      if (!absent.contains(m.c_bias_name()))
        writer.add(m.c_bias_name(), {m.out}, random_values(m.out, 1), dtype::f32);
      return true;
    });
    return llm_test::file_error_of([&] { language_model::open(output).layer(1); });
  };
  const auto without = [&](const std::string& name) {
    return refusal([&](auto&, auto& absent, auto&) { absent.insert(name); });
  };
  // The tensor in another shape or type.
  const auto instead = [&](const std::string& name, const std::vector<std::int64_t>& shape) {
    return refusal([&](auto&, auto& absent, checkpoint_writer& writer) {
      absent.insert(name);
      std::int64_t elements = 1;
      for (const std::int64_t extent : shape)
        elements *= extent;
      writer.add(name, shape, random_values(elements, 1), dtype::f32);
    });
  };
  const auto beside = [&](const std::string& name, const std::vector<std::int64_t>& shape) {
    return refusal([&](auto&, auto&, checkpoint_writer& writer) {
      writer.add(name, shape, random_values(shape[0] * shape[1], 1), dtype::f32);
    });
  };
  const auto order = [&](const std::function<void(std::vector<std::int32_t>&)>& alter) {
    return refusal([&](pivoted_parts& p, auto&, auto&) { alter(p.order); });
  };
  CHECK(refusal([](auto&, auto&, auto&) {}) == "no exception");

  const std::int64_t smaller = std::min(m.out, m.in), rank = smaller / 2;
  for (const std::string& name : {m.c_name(), m.z_name(), m.order_name(), m.c_bias_name()}) {
    CHECK_THAT(without(name), contains_text("tensor " + name + ": missing"));
  }
  CHECK_THAT(beside(m.weight_name(), {m.out, m.in}),
             contains_text(m.weight_name() + ": stands beside the factors"));
  CHECK_THAT(beside(m.u_name(), {m.out, 1}),
             contains_text(m.u_name() + ": stands beside the pivoted form"));
  CHECK_THAT(beside(m.v_name(), {1, m.in}),
             contains_text(m.v_name() + ": stands beside the pivoted form"));
  CHECK_THAT(instead(m.z_name(), {rank * m.in}), contains_text(m.z_name() + ": shape ["));
  CHECK_THAT(instead(m.z_name(), {0, m.in}), contains_text(m.z_name() + ": shape [0, "));
  CHECK_THAT(instead(m.z_name(), {smaller, m.in}),
             contains_text(m.z_name() + ": shape [" + std::to_string(smaller) + ", "));
  CHECK_THAT(instead(m.z_name(), {rank, m.in + 1}), contains_text(m.z_name() + ": shape ["));
  CHECK_THAT(instead(m.c_name(), {m.out, rank}), contains_text(m.c_name() + ": shape ["));
  CHECK_THAT(instead(m.order_name(), {m.out}),
             contains_text(m.order_name() + ": element type F32 where I32 is expected"));
  CHECK_THAT(refusal([&](auto&, auto& absent, checkpoint_writer& writer) {
               absent.insert(m.order_name());
               writer.add(m.order_name(), {m.out - 1}, random_order(m.out - 1, 1));
             }),
             contains_text(m.order_name() + ": shape ["));
  CHECK_THAT(refusal([&](auto&, auto& absent, checkpoint_writer& writer) {
               absent.insert(m.z_name());
               writer.add(m.z_name(), {rank, m.in},
                          std::vector<std::int32_t>(static_cast<std::size_t>(rank * m.in)));
             }),
             contains_text(m.z_name() + ": element type I32 where F32, F16 or BF16 is expected"));
  const std::string no_permutation = m.order_name() + ": is no permutation of the rows";
  CHECK_THAT(order([](auto& o) { o[0] = o[1]; }), contains_text(no_permutation));
  CHECK_THAT(order([](auto& o) { o[0] = -1; }), contains_text(no_permutation));
  CHECK_THAT(order([&](auto& o) { o[0] = static_cast<std::int32_t>(m.out); }),
             contains_text(no_permutation));
}

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
    std::int64_t modules = 0;
    for (std::int64_t layer = 0; layer < f.config.layers; ++layer)
      modules += std::ssize(linear_modules(f.config, layer));
    CHECK(factored == modules);
    if (f.config.experts == 0)
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
  CHECK(modules[0].c_name() == "model.layers.1.self_attn.q_c_proj.weight");
  CHECK(modules[0].z_name() == "model.layers.1.self_attn.q_z_proj.weight");
  CHECK(modules[0].order_name() == "model.layers.1.self_attn.q_c_proj.rows");
  CHECK(modules[0].c_bias_name() == "model.layers.1.self_attn.q_c_proj.bias");
  CHECK(modules[6].u_name() == "model.layers.1.mlp.down_u_proj.weight");
  const fixture opt("opt");
  const std::vector<linear_module> others = linear_modules(opt.config, 0);
  REQUIRE(others.size() == 6);
  CHECK(others[3].u_name() == "model.decoder.layers.0.self_attn.out_u_proj.weight");
  CHECK(others[4].u_name() == "model.decoder.layers.0.fc1_u.weight");
  CHECK(others[4].z_name() == "model.decoder.layers.0.fc1_z.weight");
  CHECK(others[4].order_name() == "model.decoder.layers.0.fc1_c.rows");
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
