// SPDX-License-Identifier: Apache-2.0
//
// Refinement: of one block, within a compression, and of a checkpoint that was compressed before.
#include "compress/refine.hpp"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <random>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "compress/block_refinement.hpp"
#include "compress/compress.hpp"
#include "compress/samples.hpp"
#include "io/checkpoint.hpp"
#include "io/error.hpp"
#include "llm/compress/short_compression.hpp"
#include "llm/io/limits.hpp"
#include "llm/io/run_command.hpp"
#include "llm/io/temporary.hpp"
#include "llm/model/fixture.hpp"
#include "support/catch.hpp"

namespace ressvd_llm {
namespace {

namespace fs = std::filesystem;
using llm_test::temporary_directory;
using testing::fixture;
using testing::random_values;

using ressvd::factored_form;

// Fixtures' blocks are small and random: a high rate moves them within a few steps.
compress_options refined_compression(const fs::path& model, const fs::path& output) {
  compress_options o = testing::short_compression(model, output);
  o.samples = 96;
  o.refine = {.epochs = 4, .samples = 48, .batch = 4, .rate = 5e-3};
  return o;
}

using tensors = std::map<std::string, std::vector<float>>;

tensors tensors_of(const fs::path& model) {
  const checkpoint source = checkpoint::open(model);
  tensors result;
  for (const std::string& name : source.names()) {
    const auto shape = source.describe(name).shape;
    if (name.ends_with(".rows")) {
      const auto order = read_i32(source, name, shape);
      result[name] = {order.begin(), order.end()};
    } else {
      result[name] = read_f32(source, name, shape);
    }
  }
  return result;
}

// Names of the tensors that differ; all must be in both.
std::vector<std::string> changed(const tensors& a, const tensors& b) {
  REQUIRE(a.size() == b.size());
  std::vector<std::string> names;
  for (const auto& [name, values] : a) {
    REQUIRE(b.contains(name));
    if (values != b.at(name)) names.push_back(name);
  }
  return names;
}

bool is_factor(const std::string& name) {
  return std::ranges::any_of(std::string("uvcz"), [&](char factor) {
    const std::string part = std::string("_") + factor;
    return name.find(part + "_proj.") != name.npos || name.find(part + ".weight") != name.npos;
  });
}

struct mean_errors {
  double before = 0;
  double after = 0;
};

mean_errors training_errors(const refinement_report& report) {
  mean_errors sums;
  for (const refined_block& block : report.blocks) {
    sums.before += block.before.training;
    sums.after += block.after.training;
  }
  return sums;
}

void require_heldout_never_rises(const refinement_report& report) {
  for (const refined_block& block : report.blocks) {
    INFO("layer " << block.layer);
    if (block.epochs > 0)
      CHECK(block.after.heldout < block.before.heldout);
    else
      CHECK(block.after.heldout == block.before.heldout);
  }
}

refine_run run_after(const compress_options& o, const fs::path& output) {
  refine_run run{.compressed = o.output, .run = o};
  run.run.output = output;
  run.run.type.reset();
  return run;
}

} // namespace

TEST_CASE("the objective's gradient at the output is that of the squared error", "[refine]") {
  const std::vector<float> target = random_values(40, 1);
  const std::vector<float> output = random_values(40, 2);
  std::vector<float> gradient = output;
  const double loss = squared_error_gradient(target.data(), 40, 0.25, gradient.data());
  const auto loss_at = [&](std::vector<float> x) {
    return squared_error_gradient(target.data(), 40, 0.25, x.data());
  };
  CHECK(loss_at(target) == 0);
  for (std::size_t i = 0; i < 40; i += 7) {
    constexpr float h = 0x1p-6f;
    std::vector<float> up = output;
    std::vector<float> down = output;
    up[i] += h;
    down[i] -= h;
    // Of a quadratic the central difference is exact.
    CHECK(std::abs((loss_at(up) - loss_at(down)) / (2 * static_cast<double>(h)) -
                   static_cast<double>(gradient[i])) < 1e-5);
  }
  CHECK(loss > 0);
}

TEST_CASE("a block's errors are those of its windows", "[refine]") {
  const std::vector<float> target = random_values(60, 1);
  std::vector<float> output = target;
  output[25] += 0.5f;
  const window_errors errors = errors_of(output, target, 20);
  CHECK(errors.differences == std::vector<double>{0, 0.25, 0});
  CHECK(errors.relative(0, 1) == 0);
  CHECK(std::abs(errors.relative(1, 2) - 0.25 / errors.targets[1]) < 1e-15);
  CHECK(errors.relative(0, 3) < errors.relative(1, 2));
  CHECK(errors_of(std::vector<float>(4), std::vector<float>(4), 2).relative(0, 2) == 0);
}

TEST_CASE("the values that are trained are copies, and of a pair the balanced ones", "[refine]") {
  const fixture f("llama");
  const temporary_directory directory;
  compress_options o = testing::short_compression(f.directory, directory / "out");
  o.form = factored_form::pair;
  compress(o);
  const language_model model = language_model::open(o.output);
  const layer_weights& original = model.layer(0);
  const trained_block block(original, {});
  CHECK(block.tensors.size() == 14);
  const linear& before = original[projection::q];
  const linear& after = block.weights[projection::q];
  const std::vector<float> u = after.u.values();
  const std::vector<float> v = after.v.values();
  for (std::int64_t k = 0; k < after.rank(); ++k) {
    double left = 0;
    double right = 0;
    for (std::int64_t i = 0; i < after.out(); ++i)
      left += std::pow(static_cast<double>(u[static_cast<std::size_t>(i * after.rank() + k)]), 2);
    for (std::int64_t j = 0; j < after.in(); ++j)
      right += std::pow(static_cast<double>(v[static_cast<std::size_t>(k * after.in() + j)]), 2);
    CHECK(std::abs(left - right) < 1e-5 * left);
  }
  const std::vector<float> x = random_values(3 * f.config.hidden_size, 5);
  std::vector<float> y(static_cast<std::size_t>(3 * before.out()));
  std::vector<float> z = y;
  before.apply(x.data(), 3, y.data());
  after.apply(x.data(), 3, z.data());
  CHECK(testing::relative_error(z, y) < testing::rounding);
  std::fill_n(block.tensors.front().values, block.tensors.front().size, 0.0f);
  after.apply(x.data(), 3, z.data());
  CHECK(testing::relative_error(z, y) > 0.5);
  before.apply(x.data(), 3, z.data());
  CHECK(y == z);
}

void write_random_tokens(const std::filesystem::path& file, std::int64_t vocab, int count) {
  std::mt19937 random(5);
  std::string bytes;
  for (int i = 0; i < count; ++i) {
    const auto id = static_cast<std::uint32_t>(random() % static_cast<std::uint32_t>(vocab));
    bytes += {static_cast<char>(id & 0xff), static_cast<char>(id >> 8)};
  }
  llm_test::write(file, bytes);
}

TEST_CASE("refinement brings the blocks of every family closer to the original's", "[refine]") {
  for (const std::string& family : testing::families) {
    for (const factored_form form : {factored_form::pair, factored_form::pivoted}) {
      INFO(family << ", " << name_of(form));
      const fixture f(family);
      const temporary_directory directory;
      compress_options o = refined_compression(f.directory, directory / "refined");
      o.form = form;
      o.calibration = directory / "any.u16"; // one fixture writes a single token all the time
      write_random_tokens(o.calibration, f.config.vocab, 4000);
      const compression_report report = compress(o);
      REQUIRE(report.refinement);
      const refinement_report& r = *report.refinement;
      CHECK(r.training_windows == 44);
      CHECK(r.heldout_windows == 4);
      REQUIRE(std::ssize(r.blocks) == f.config.layers);
      const auto [before, after] = training_errors(r);
      CHECK(before > 0);
      CHECK(after < 0.9 * before);
      require_heldout_never_rises(r);
      // The same ranks as without, and nothing but factors differs.
      compress_options plain = o;
      plain.output = directory / "plain";
      plain.refine = {};
      const compression_report without = compress(plain);
      CHECK(without.parameters == report.parameters);
      const auto names = changed(tensors_of(o.output), tensors_of(plain.output));
      CHECK(!names.empty());
      CHECK(std::ranges::all_of(names, is_factor));
    }
  }
}

TEST_CASE("blocks that lose nothing stay as they are", "[refine]") {
  const fixture f("qwen3");
  const temporary_directory directory;
  compress_options o = refined_compression(f.directory, directory / "out");
  o.ratio = 0;
  const compression_report report = compress(o);
  REQUIRE(report.refinement);
  CHECK(report.refinement->blocks.empty());
  CHECK(changed(tensors_of(o.output), tensors_of(f.directory)).empty());

  // Factors whose outputs are the targets.
  o.ratio = 0.4;
  o.refine = {};
  o.output = directory / "factored";
  compress(o);
  const language_model model = language_model::open(o.output);
  layer_weights weights = model.layer(0);
  const std::vector<float> input = random_values(6 * 8 * f.config.hidden_size, 3);
  std::vector<float> target = input;
  cpu_forward(f.config).layer(weights, target.data(), 6 * 8, 8, nullptr);
  block_refinement refinement(f.config, {.epochs = 3, .batch = 2, .rate = 0.1}, 1);
  std::int64_t steps = 0;
  const refined_block block =
      refinement.refine(0, weights, {input, target, 8, 4}, [&] { ++steps; });
  CHECK(block.before.training == 0);
  CHECK(block.epochs == 0);
  CHECK(steps == refinement.steps(4));
  CHECK(weights[projection::q].z.values() == model.layer(0)[projection::q].z.values());
}

TEST_CASE("where training does not help the closed form is kept and the report says so",
          "[refine]") {
  const fixture f("llama");
  const temporary_directory directory;
  compress_options o = testing::short_compression(f.directory, directory / "plain");
  compress(o);
  const tensors plain = tensors_of(o.output);
  for (const double rate : {0.5, 1e3, 1e30}) {
    INFO("rate " << rate);
    o.output = directory / "refined";
    fs::remove_all(o.output);
    o.refine = {.epochs = 6, .samples = 12, .batch = 2, .rate = rate};
    const compression_report report = compress(o);
    for (const refined_block& block : report.refinement->blocks) {
      CHECK(block.epochs == 0);
      CHECK(block.halvings > 0);
      CHECK(block.rate < rate);
      CHECK(block.after.heldout == block.before.heldout);
    }
    CHECK(changed(tensors_of(o.output), plain).empty());
    CHECK(summary_of(*report.refinement).starts_with("refined 0 of 2 blocks"));
  }
}

TEST_CASE("a block ends where its error has not fallen for some epochs", "[refine]") {
  const fixture f("llama");
  const temporary_directory directory;
  compress_options o = testing::short_compression(f.directory, directory / "out");
  compress(o);
  const language_model model = language_model::open(o.output);
  const std::vector<float> input = random_values(24 * 8 * f.config.hidden_size, 3);
  std::vector<float> target = input;
  cpu_forward(f.config).layer(language_model::open(f.directory).layer(0), target.data(), 24 * 8, 8,
                              nullptr);
  const auto refined = [&](double rate, std::int64_t patience) {
    layer_weights weights = model.layer(0);
    block_refinement refinement(f.config,
                                {.epochs = 9, .batch = 4, .rate = rate, .patience = patience}, 1);
    return refinement.refine(0, weights, {input, target, 8, 20}, [] {});
  };
  // Nothing moves at rate 0.
  CHECK(refined(0, 0).trained_epochs == 9);
  for (const std::int64_t patience : {1, 2, 5}) {
    CHECK(refined(0, patience).trained_epochs == patience);
    CHECK(refined(0, patience).epochs == 0);
    // The best state counts from where it is.
    const refined_block some = refined(0.001, patience);
    CHECK(some.epochs > 0);
    CHECK(some.trained_epochs <= some.epochs + patience);
  }
  CHECK(refined(0.001, 9).epochs == refined(0.001, 0).epochs);
}

TEST_CASE("a rate that is too high is halved until steps help", "[refine]") {
  const fixture f("llama");
  const temporary_directory directory;
  compress_options o = testing::short_compression(f.directory, directory / "out");
  o.samples = 96;
  bool halved = false;
  for (const double rate : {0.1, 0.2, 0.4}) {
    fs::remove_all(o.output);
    o.refine = {.epochs = 20, .samples = 48, .batch = 4, .rate = rate};
    const compression_report report = compress(o);
    for (const refined_block& block : report.refinement->blocks)
      halved = halved || (block.halvings > 0 && block.epochs > 0);
    require_heldout_never_rises(*report.refinement);
  }
  CHECK(halved);
}

TEST_CASE("equal seeds refine to equal bits, others do not", "[refine]") {
  const fixture f("mistral");
  const temporary_directory directory;
  // Samples that do not depend on the seed.
  const compress_options samples = refined_compression(f.directory, {});
  std::vector<std::uint16_t> ids;
  for (const std::int32_t id :
       make_samples(samples, language_model::open(f.directory)).calibration.ids)
    ids.push_back(static_cast<std::uint16_t>(id));
  llm_test::write(directory / "ids.u16", llm_test::bytes_of(ids));
  const auto refined = [&](const char* name, std::uint64_t seed) {
    compress_options o = refined_compression(f.directory, directory / name);
    o.calibration = directory / "ids.u16";
    o.windows = window_choice::first;
    o.heldout_samples = 0;
    o.seed = seed;
    compress(o);
    return tensors_of(o.output);
  };
  const tensors first = refined("first", 3);
  CHECK(changed(first, refined("again", 3)).empty());
  CHECK(!changed(first, refined("other", 4)).empty());
}

TEST_CASE("refinement works with every method that fits, every allocation and every format",
          "[refine]") {
  const fixture f("llama3");
  const temporary_directory directory;
  compress_options o = refined_compression(f.directory, directory / "out");
  const auto check = [&](const std::string& what) {
    INFO(what);
    fs::remove_all(o.output);
    const compression_report report = compress(o);
    REQUIRE(report.refinement);
    const auto [before, after] = training_errors(*report.refinement);
    CHECK(after < before);
    require_heldout_never_rises(*report.refinement);
    return report;
  };
  o.retruncate = true;
  o.update_target = 0.5; // the default, 1, leaves no step here that helps
  check("retruncate");
  o.retruncate = false;
  o.update_target.reset();
  o.update = true;
  check("update");
  o.update = false;
  for (const char* method : {"svd", "asvd", "ressvd", "kfac-svd"}) {
    o.method = method;
    check(method);
  }
  o.allocation = allocation::fisher;
  check("fisher");
  o.allocation = allocation::last_layers;
  o.last_layers = 1;
  o.ratio = 0.2;
  const compression_report last = check("last layer");
  REQUIRE(last.refinement->blocks.size() == 1);
  CHECK(last.refinement->blocks[0].layer == f.config.layers - 1);
  const tensors factored = tensors_of(o.output);
  o.refine.norms = true;
  o.format = output_format::dense;
  check("dense");
  const auto logits = testing::logits_of(o.output, f);
  o.format = output_format::gguf;
  o.output = directory / "out.gguf";
  check("gguf");
  CHECK(testing::relative_difference(testing::logits_of(o.output, f), logits) < 1e-5);
}

TEST_CASE("dense matrices and norms are trained where asked for", "[refine]") {
  const fixture f("qwen3");
  const temporary_directory directory;
  compress_options o = refined_compression(f.directory, directory / "plain");
  o.rank_multiple = 24; // k and v stay dense
  o.refine.rate = 5e-4;
  const compression_report plain = compress(o);
  const tensors before = tensors_of(o.output);
  const auto names_changed = [&](const char* name) {
    o.output = directory / name;
    compress(o);
    // The ranks, and with them the names, are the same.
    return changed(tensors_of(o.output), before);
  };
  const auto dense = [](const std::string& name) {
    return name.find("_proj.weight") != name.npos && !is_factor(name);
  };
  const auto norm = [](const std::string& name) { return name.find("norm.weight") != name.npos; };
  REQUIRE(std::ranges::any_of(plain.matrices, [](const matrix_report& m) { return !m.factors; }));
  o.refine.dense = true;
  auto names = names_changed("dense");
  CHECK(std::ranges::any_of(names, dense));
  CHECK(std::ranges::none_of(names, norm));
  o.refine.dense = false;
  o.refine.norms = true;
  names = names_changed("norms");
  CHECK(std::ranges::none_of(names, dense));
  CHECK(std::ranges::count_if(names, norm) == 4 * f.config.layers);
}

TEST_CASE("what is trained in float32 is rounded to the output's type", "[refine]") {
  const fixture f("qwen2");
  const temporary_directory directory;
  compress_options o = refined_compression(f.directory, directory / "f32");
  o.form = factored_form::pair;
  compress(o);
  const tensors exact = tensors_of(o.output);
  o.output = directory / "bf16";
  o.type = dtype::bf16;
  compress(o);
  const tensors rounded = tensors_of(o.output);
  REQUIRE(rounded.size() == exact.size());
  for (const auto& [name, values] : exact) {
    INFO(name);
    const std::vector<float>& other = rounded.at(name);
    bool close = true;
    for (std::size_t i = 0; i < values.size(); ++i)
      close = close && std::abs(other[i] - values[i]) <= 0x1p-8f * std::abs(values[i]);
    CHECK(close);
  }
}

TEST_CASE("samples that the model writes are mixed in evenly", "[samples]") {
  const fixture f("llama");
  const language_model model = language_model::open(f.directory);
  const temporary_directory directory;
  compress_options o = testing::short_compression(f.directory, directory / "out");
  o.samples = 9;
  const auto windows_of = [&](const compress_options& options) {
    const sample_set set = make_samples(options, model).calibration;
    std::vector<std::vector<std::int32_t>> windows;
    for (std::int64_t i = 0; i < set.count(); ++i)
      windows.emplace_back(set.ids.begin() + i * set.length,
                           set.ids.begin() + (i + 1) * set.length);
    return windows;
  };
  const auto own = windows_of(o);
  o.calibration = directory / "text.u16";
  write_random_tokens(o.calibration, f.config.vocab, 4000);
  const auto text = windows_of(o);
  o.self_samples = 5;
  const auto mixed = windows_of(o);
  REQUIRE(mixed.size() == 14);
  std::size_t written = 0;
  for (std::size_t i = 0; i < mixed.size(); ++i) {
    if (written < 5 && mixed[i] == own[written])
      ++written;
    else
      CHECK(mixed[i] == text[i - written]);
    CHECK(written == (i + 1) * 5 / 14);
  }
  // Of a part the share is the same, and the run's report and key have the number.
  o.refine = {.epochs = 1, .batch = 4, .rate = 1e-3};
  CHECK(samples_of_refinement(o) == 14);
  o.refine.samples = 7;
  const compression_report report = compress(o);
  CHECK(report.samples.count == 14);
  CHECK(report.samples.self == 5);
  CHECK(report.refinement->training_windows + report.refinement->heldout_windows == 7);
  CHECK(nlohmann::json::parse(report.options)["self_samples"] == 5);

  // Refining afterwards sees the same windows.
  const tensors at_once = tensors_of(o.output);
  const refine_options refine_as = o.refine;
  o.output = directory / "compressed";
  o.refine = {};
  compress(o);
  o.refine = refine_as;
  refine(run_after(o, directory / "refined"));
  CHECK(changed(tensors_of(directory / "refined"), at_once).empty());
}

TEST_CASE("an anchor and a decay change what is aimed at", "[refine]") {
  const fixture f("llama");
  const temporary_directory directory;
  const auto refined = [&](const char* name, const refine_options& refine) {
    compress_options o = refined_compression(f.directory, directory / name);
    o.form = factored_form::pivoted;
    o.refine = refine;
    const compression_report report = compress(o);
    if (report.refinement) {
      const auto [before, after] = training_errors(*report.refinement);
      CHECK(after < before);
    }
    return tensors_of(o.output);
  };
  const refine_options usual{.epochs = 4, .samples = 48, .batch = 4, .rate = 5e-3};
  const tensors closed = refined("closed", {});
  const tensors free = refined("free", usual);
  refine_options pulled = usual;
  pulled.decay = 50;
  const tensors near = refined("near", pulled);
  refine_options anchored = usual;
  anchored.anchor = 1;
  CHECK(!changed(free, refined("anchored", anchored)).empty());
  const auto distance = [&](const tensors& a) {
    double sum = 0;
    for (const auto& [name, values] : closed)
      for (std::size_t i = 0; i < values.size(); ++i)
        sum += std::pow(static_cast<double>(a.at(name)[i]) - static_cast<double>(values[i]), 2);
    return std::sqrt(sum);
  };
  CHECK(distance(near) > 0);
  CHECK(distance(near) < 0.7 * distance(free));
}

TEST_CASE("fewer than two samples are refused before anything is written", "[refine]") {
  const fixture f("llama");
  const temporary_directory directory;
  compress_options o = refined_compression(f.directory, directory / "out");
  o.samples = 1;
  CHECK_THAT(llm_test::message_of<usage_error>([&] { compress(o); }),
             contains_text("--refine needs at least 2 samples"));
  CHECK(llm_test::tree(directory.path()).empty());
}

TEST_CASE("refining a checkpoint is refining its compression", "[refine]") {
  const fixture f("qwen2");
  for (const factored_form form : {factored_form::pair, factored_form::pivoted}) {
    INFO(name_of(form));
    const temporary_directory directory;
    compress_options o = refined_compression(f.directory, directory / "at_once");
    o.form = form;
    compress(o);
    const refine_options refine_as = o.refine;
    o.output = directory / "compressed";
    o.refine = {};
    compress(o);
    o.refine = refine_as;
    const refine_report report = refine(run_after(o, directory / "refined"));
    CHECK(changed(tensors_of(directory / "refined"), tensors_of(directory / "at_once")).empty());
    CHECK(llm_test::read(directory / "refined/config.json") ==
          llm_test::read(directory / "compressed/config.json"));
    const auto [before, after] = training_errors(report.refinement);
    CHECK(after < before);
    REQUIRE(report.heldout.size() == 3);
    CHECK(report.heldout[0].divergence == 0);
    const auto json = to_json(report);
    CHECK(json["refinement"]["blocks"].size() == report.refinement.blocks.size());
    CHECK(json["memory"]["peak_bytes"] > 0);

    // Factors in another type.
    refine_run run = run_after(o, directory / "half");
    run.run.type = dtype::f16;
    refine(run);
    CHECK(testing::relative_difference(testing::logits_of(directory / "half", f),
                                       testing::logits_of(directory / "refined", f)) < 0.01);
  }
}

TEST_CASE("what is not a compression of the model is refused", "[refine]") {
  const fixture f("llama");
  const temporary_directory directory;
  compress_options o = refined_compression(f.directory, directory / "compressed");
  const refine_options refine_as = o.refine;
  o.refine = {};
  compress(o);
  o.refine = refine_as;
  refine_run run = run_after(o, directory / "out");
  const auto refused = [&](const std::string& why) {
    CHECK_THAT(llm_test::message_of<usage_error>([&] { refine(run); }), contains_text(why));
    CHECK(!fs::exists(run.run.output));
    CHECK(!fs::exists(testing::partial_of(run.run.output)));
  };
  run.run.model = fs::path(RESSVD_LLM_FIXTURES) / "qwen2";
  refused("compressed: its shape is not that of ");
  run.run.model = o.output;
  refused("compressed: is a factored checkpoint, not an original");
  run.run.model = f.directory;
  run.compressed = f.directory;
  refused("llama: has no factors to refine");
  run.compressed = o.output;
  run.run.samples = 1;
  refused("refinement needs at least 2 samples");
  run.run.samples = 8;
  run.compressed = directory / "nowhere";
  CHECK_THROWS_AS(refine(run), file_error);

  // The same shape, other numbers.
  const fs::path foreign = directory / "foreign";
  fs::copy(f.directory, foreign);
  std::string file = llm_test::read(foreign / "model.safetensors");
  const checkpoint source = checkpoint::open(f.directory);
  const tensor_view& embedding = source.at("model.embed_tokens.weight");
  const std::string bytes(reinterpret_cast<const char*>(embedding.data),
                          static_cast<std::size_t>(embedding.elements()) * sizeof(float));
  const std::size_t at = file.find(bytes);
  REQUIRE(at != std::string::npos);
  const std::string row = bytes.substr(0, 4);
  for (std::size_t i = 0; i < bytes.size(); i += 4)
    file.replace(at + i, 4, row);
  llm_test::write(foreign / "model.safetensors", file);
  run.compressed = o.output;
  run.run.model = foreign;
  CHECK_THAT(llm_test::message_of<usage_error>([&] { refine(run); }),
             contains_text("compressed: its embeddings are not those of "));
  CHECK(!fs::exists(run.run.output));
}

TEST_CASE("the commands refine and compress --refine report what they did", "[refine][command]") {
  const temporary_directory directory;
  const std::string model = (fs::path(RESSVD_LLM_FIXTURES) / "qwen3").string();
  const std::string compressed = (directory / "compressed").string();
  const std::string report = (directory / "report.json").string();
  const std::vector<std::string> samples{"--samples",         "12", "--seqlen", "16",
                                         "--heldout-samples", "2",  "--json",   report};
  const auto run = [&](std::vector<std::string> words) {
    words.insert(words.end(), samples.begin(), samples.end());
    return llm_test::run_command(words);
  };
  const auto told = run({"compress", model, compressed, "--preset", "svd-llm", "--ratio", "0.4",
                         "--refine", "2", "--refine-rate", "0.005"});
  INFO(told.err);
  CHECK(told.status == 0);
  CHECK_THAT(told.out, contains_text("refined ") && contains_text(" of 2 blocks in "));
  auto json = nlohmann::json::parse(llm_test::read(report));
  CHECK(json["options"]["refine"] == 2);
  CHECK(json["refinement"]["blocks"].size() == 2);
  CHECK(json["seconds"].contains("refining"));

  const auto again = run({"refine", model, compressed, (directory / "refined").string(),
                          "--refine-rate", "0.005", "--refine", "1", "--refine-norms"});
  INFO(again.err);
  CHECK(again.status == 0);
  CHECK_THAT(again.out, contains_text("held-out perplexity") && contains_text(" blocks in "));
  CHECK_THAT(again.err, contains_text("estimated peak memory"));
  json = nlohmann::json::parse(llm_test::read(report));
  CHECK(json["options"]["refine_norms"] == true);
  CHECK(json["heldout"]["refined"]["perplexity"] > 0);

  const auto none =
      run({"refine", model, compressed, (directory / "none").string(), "--refine", "0"});
  CHECK(none.status == 2);
  CHECK_THAT(none.err, contains_text("--refine 0 leaves nothing to do"));
  const auto without = run({"compress", model, (directory / "without").string(), "--preset",
                            "svd-llm", "--refine-rate", "0.1"});
  CHECK(without.status == 2);
  CHECK_THAT(without.err, contains_text("--refine-rate has no effect with ") &&
                              contains_text("it goes with --refine"));
}

TEST_CASE("an interrupted refinement of a checkpoint is completed to the same bytes",
          "[refine][resume]") {
  const fixture f("qwen2");
  const temporary_directory directory;
  compress_options o = refined_compression(f.directory, directory / "compressed");
  const refine_options refine_as = o.refine;
  o.refine = {};
  compress(o);
  o.refine = refine_as;
  refine_run run = run_after(o, directory / "whole");
  const refine_report whole = refine(run);
  run.run.output = directory / "out";
  {
    const llm_test::file_size_limit limit(fs::file_size(directory / "whole/model.safetensors") - 1);
    CHECK_THAT(llm_test::file_error_of([&] { refine(run); }), contains_text("File too large"));
  }
  REQUIRE(fs::exists(testing::partial_of(run.run.output) / "journal.json"));
  run.run.resume = true;
  run.run.refine.rate *= 2;
  CHECK_THAT(llm_test::message_of<usage_error>([&] { refine(run); }),
             contains_text("the interrupted run had other options"));
  run.run.refine.rate /= 2;
  const refine_report resumed = refine(run);
  CHECK(llm_test::tree(run.run.output) == llm_test::tree(directory / "whole"));
  CHECK(to_json(resumed)["refinement"]["blocks"][0]["after"] ==
        to_json(whole)["refinement"]["blocks"][0]["after"]);
}

} // namespace ressvd_llm
