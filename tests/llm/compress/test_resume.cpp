// SPDX-License-Identifier: Apache-2.0
//
// What an interrupted or failed compression leaves, and what a resumed one makes of it.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <limits>
#include <string>
#include <system_error>
#include <vector>

#include <nlohmann/json.hpp>

#include "compress/compress.hpp"
#include "compress/kept_results.hpp"
#include "io/checkpoint.hpp"
#include "io/checkpoint_writer.hpp"
#include "io/error.hpp"
#include "llm/compress/short_compression.hpp"
#include "llm/io/limits.hpp"
#include "llm/io/temporary.hpp"
#include "llm/model/fixture.hpp"
#include "support/catch.hpp"

namespace ressvd_llm {
namespace {

namespace fs = std::filesystem;
using llm_test::file_error_of;
using llm_test::file_size_limit;
using llm_test::temporary_directory;
using testing::fixture;

compress_options short_run(const fs::path& model, const fs::path& output) {
  compress_options o = testing::short_compression(model, output);
  o.allocation = allocation::last_layers;
  o.samples = 12;
  o.search_samples = 4;
  o.probe_samples = 2;
  return o;
}

// One run for each kind of measurement that is kept.
std::vector<compress_options> slow_runs(const fs::path& model, const fs::path& output) {
  std::vector<compress_options> runs(7, short_run(model, output));
  runs[1].allocation = allocation::sensitivity;
  runs[1].rounds = 2;
  runs[1].update = true;
  runs[2].allocation = allocation::uniform;
  runs[2].method = "tempered";
  runs[2].retruncate = true;
  runs[3] = runs[2];
  runs[3].form = ressvd::factored_form::pivoted;
  runs[4].allocation = allocation::fisher;
  runs[4].method = "kfac-svd";
  runs[4].retruncate = true;
  runs[5].refine = {.epochs = 2, .batch = 2, .rate = 5e-3};
  runs[6] = runs[3];
  runs[6].rank_multiple = 4;
  runs[6].refine = {.epochs = 3,
                    .samples = 9,
                    .batch = 4,
                    .rate = 5e-3,
                    .patience = 1,
                    .dense = true,
                    .norms = true};
  return runs;
}

// The fixture's model at `model`, its config changed.
template <class F>
void copy_with_config(const fs::path& model, F change) {
  const fixture f("llama");
  fs::copy(f.directory, model);
  auto config = nlohmann::json::parse(llm_test::read(model / "config.json"));
  change(config);
  llm_test::write(model / "config.json", config.dump());
}

std::uint64_t size_of_tree(const fs::path& directory) {
  std::uint64_t sum = 0;
  for (const auto& [name, content] : llm_test::tree(directory))
    sum += content.size();
  return sum;
}

// The run without a break into `whole`, and the same into o.output on a disk that is full when the
// output is put together, or before that another file. Returns the report of the first.
compression_report run_and_break(const compress_options& o, const fs::path& whole,
                                 const std::string& broken = "model.safetensors") {
  compress_options unbroken = o;
  unbroken.output = whole;
  const compression_report report = compress(unbroken);
  const file_size_limit limit(fs::file_size(whole / "model.safetensors") - 1);
  CHECK_THAT(file_error_of([&] { compress(o); }),
             contains_text(broken + ": cannot be written: File too large"));
  return report;
}

// What a report says about the output, apart from where it is and how long it took.
nlohmann::ordered_json findings(const compression_report& report) {
  auto json = to_json(report);
  for (const char* key : {"output", "seconds", "memory"})
    json.erase(key);
  for (auto& matrix : json["matrices"])
    matrix.erase("seconds");
  if (!json.contains("refinement")) return json;
  for (auto& block : json["refinement"]["blocks"])
    block.erase("seconds");
  return json;
}

std::string first_line(const std::string& text) {
  return text.substr(0, text.find('\n'));
}

} // namespace

TEST_CASE("an error at the end keeps what --resume completes to the same bytes and report",
          "[resume]") {
  const fixture f(GENERATE("qwen2", "qwen3_moe"));
  for (compress_options o : slow_runs(f.directory, {})) {
    INFO(f.directory.string() << ", " << name_of(o.allocation));
    const temporary_directory directory;
    o.output = directory / "out";
    // Bases of both sides of all experts' matrices are larger than the output.
    const bool large = f.config.experts > 0 && o.method == "kfac-svd";
    const compression_report whole = run_and_break(
        o, directory / "whole", large ? "layer-1.safetensors.tmp" : "model.safetensors");
    CHECK_FALSE(fs::exists(o.output));
    REQUIRE(fs::exists(testing::partial_of(o.output) / "journal.json"));
    // Nothing half-written: neither a shard nor a temporary file.
    for (const auto& [name, content] : llm_test::tree(testing::partial_of(o.output))) {
      INFO(name);
      CHECK_FALSE(name.ends_with(".tmp"));
      CHECK_FALSE(name.starts_with("checkpoint"));
    }
    o.resume = true;
    const compression_report resumed = compress(o);
    CHECK(llm_test::tree(o.output) == llm_test::tree(directory / "whole"));
    CHECK(findings(resumed) == findings(whole));
    CHECK_FALSE(fs::exists(testing::partial_of(o.output)));
  }
}

TEST_CASE("a resumed run takes its samples and measurements from the interrupted one", "[resume]") {
  const fixture f("qwen2");
  for (compress_options o : slow_runs(f.directory, {})) {
    INFO(name_of(o.allocation));
    const temporary_directory directory;
    o.output = directory / "out";
    const compression_report whole = run_and_break(o, directory / "whole");
    const fs::path scratch = testing::partial_of(o.output) / "scratch";

    // Numbers that no measurement gives tell what was read.
    const std::string measured = llm_test::read(scratch / "measured.jsonl");
    auto entry = nlohmann::json::parse(first_line(measured));
    const double told = entry[1].get<double>() * (1 + 1e-9);
    entry[1] = told;
    llm_test::write(scratch / "measured.jsonl",
                    entry.dump() + measured.substr(first_line(measured).size()));
    auto samples = nlohmann::json::parse(llm_test::read(scratch / "samples.json"));
    samples["heldout"] = samples["calibration"];
    llm_test::write(scratch / "samples.json", samples.dump());

    o.resume = true;
    const compression_report resumed = compress(o);
    CHECK_THAT(to_json(resumed).dump(), contains_text(nlohmann::json(told).dump()));
    CHECK(resumed.heldout->windows == o.samples);
  }
}

TEST_CASE("a resumed run tells damaged samples and measurements, and leaves them", "[resume]") {
  const fixture f("llama");
  const temporary_directory directory;
  compress_options o = short_run(f.directory, directory / "out");
  run_and_break(o, directory / "whole");
  const fs::path scratch = testing::partial_of(o.output) / "scratch";
  const std::string measured = llm_test::read(scratch / "measured.jsonl");
  const std::string samples = llm_test::read(scratch / "samples.json");
  o.resume = true;
  const auto told = [&](const char* name, const std::string& content) {
    llm_test::write(scratch / name, content);
    CHECK_THAT(file_error_of([&] { compress(o); }),
               contains_text(name) && contains_text("is damaged; start again without --resume"));
  };
  told("measured.jsonl", std::string(20, '\0') + "\n" + measured);
  told("measured.jsonl", "[\"last layers 1\"]\n" + measured);
  told("samples.json", samples.substr(0, samples.size() / 2));
  auto json = nlohmann::json::parse(samples);
  json["calibration"][3] = f.config.vocab;
  told("samples.json", json.dump());
  json["calibration"][3] = -1;
  told("samples.json", json.dump());
  json = nlohmann::json::parse(samples);
  json["length"] = 0;
  told("samples.json", json.dump());
  json["length"] = 5;
  told("samples.json", json.dump());
  llm_test::write(scratch / "samples.json", samples);
  // A line that a kill has cut short is measured again.
  llm_test::write(scratch / "measured.jsonl", measured.substr(0, measured.size() - 3));
  compress(o);
  CHECK(llm_test::tree(o.output) == llm_test::tree(directory / "whole"));
}

TEST_CASE("kept results are measured once", "[resume]") {
  const temporary_directory directory;
  const fs::path file = directory / "measured.jsonl";
  int measured = 0;
  const auto third = [&] {
    ++measured;
    return 1.0 / 3;
  };
  {
    kept_results kept(file);
    CHECK(kept.value("a \"name\"\n", third) == 1.0 / 3);
    CHECK(kept.value("a \"name\"\n", third) == 1.0 / 3);
    CHECK(kept.value("b", [] { return 2.5; }) == 2.5);
    // A number that is none must not be taken for one later.
    CHECK(std::isinf(kept.value("c", [] { return std::numeric_limits<double>::infinity(); })));
  }
  CHECK(measured == 1);
  {
    kept_results again(file);
    CHECK(again.value("a \"name\"\n", third) == 1.0 / 3);
    CHECK(again.value("c", [] { return 4.0; }) == 4.0);
  }
  CHECK(measured == 1);
  const std::string content = llm_test::read(file);
  llm_test::write(file, content.substr(0, content.size() - 1));
  kept_results torn(file);
  CHECK(torn.value("b", [] { return 0.0; }) == 2.5);
  CHECK(torn.value("c", [] { return 5.0; }) == 5.0);
  CHECK_THAT(llm_test::read(file), contains_text("[\"c\",5.0]\n") && !contains_text("4.0"));
}

TEST_CASE("the estimate of disk covers what a run leaves at its end", "[resume]") {
  const fixture f("llama");
  for (const std::string method : {"svd-llm", "ressvd", "asvd"}) {
    for (const allocation a : {allocation::last_layers, allocation::sensitivity}) {
      for (const bool update : {false, true}) {
        INFO(method << ", " << name_of(a) << ", update " << update);
        const temporary_directory directory;
        compress_options o = short_run(f.directory, directory / "out");
        o.method = method;
        o.allocation = a;
        o.update = update;
        const compression_report report = run_and_break(o, directory / "whole");
        const std::uint64_t used =
            size_of_tree(testing::partial_of(o.output)) + size_of_tree(directory / "whole");
        CHECK(report.disk_estimate >= used);
        CHECK(report.disk_estimate < 2 * used);
      }
    }
  }
}

TEST_CASE("the estimate of disk covers what refinement leaves", "[resume]") {
  const fixture f("llama");
  for (const bool all : {false, true}) {
    INFO("all parameters " << all);
    const temporary_directory directory;
    compress_options o = short_run(f.directory, directory / "out");
    o.refine = {.epochs = 1, .dense = all, .norms = all};
    const compression_report report = run_and_break(o, directory / "whole");
    const std::uint64_t used =
        size_of_tree(testing::partial_of(o.output)) + size_of_tree(directory / "whole");
    CHECK(report.disk_estimate >= used);
    CHECK(report.disk_estimate < 2 * used);
  }
}

TEST_CASE("a run that the disk cannot hold is refused with both numbers before it begins",
          "[resume]") {
  const fixture f("llama");
  const temporary_directory directory;
  const fs::path model = directory / "model";
  fs::copy(f.directory, model);
  // The original with a tensor that is a hole in the file, as large as all the free space.
  const std::string file = llm_test::read(f.directory / "model.safetensors");
  std::uint64_t length = 0;
  std::memcpy(&length, file.data(), 8);
  auto header = nlohmann::ordered_json::parse(file.substr(8, length));
  const std::string data = file.substr(8 + length);
  const std::uint64_t hole = (fs::space(directory.path()).available / 4096 + 1) * 4096;
  header["hole"] = {
      {"dtype", "F32"}, {"shape", {hole / 4}}, {"data_offsets", {data.size(), data.size() + hole}}};
  const std::string start = llm_test::safetensors(header.dump(), data);
  llm_test::write(model / "model.safetensors", start);
  std::error_code error;
  fs::resize_file(model / "model.safetensors", start.size() + hole, error);
  if (error) return; // not on this file system

  const compress_options o = short_run(model, directory / "out");
  const std::string message = llm_test::message_of<usage_error>([&] { compress(o); });
  CHECK_THAT(message, contains_text("out.partial: the run needs an estimated ") &&
                          contains_text(" GiB of disk, of which ") &&
                          contains_text(" GiB are free"));
  CHECK_FALSE(fs::exists(testing::partial_of(o.output)));
}

TEST_CASE("a context of one token is refused before anything is compressed", "[resume]") {
  const temporary_directory directory;
  const fs::path model = directory / "model";
  copy_with_config(model, [](nlohmann::json& config) { config["max_position_embeddings"] = 1; });
  const compress_options o = short_run(model, directory / "out");
  CHECK_THAT(file_error_of([&] { compress(o); }),
             contains_text("config.json: a context of 1 token leaves nothing to predict"));
  CHECK_FALSE(fs::exists(o.output));
  CHECK_FALSE(fs::exists(testing::partial_of(o.output)));
}

TEST_CASE("an evaluation that fails is told beside the finished output", "[resume]") {
  const temporary_directory directory;
  const fs::path model = directory / "model";
  // A config just below the reader's limit, which the list of ranks takes beyond it.
  copy_with_config(model, [](nlohmann::json& config) {
    config["note"] = std::string(4'194'304 - config.dump().size() - 20, 'x');
  });
  const compress_options o = short_run(model, directory / "out");
  const compression_report report = compress(o);
  CHECK_FALSE(report.heldout);
  REQUIRE(report.evaluation_error);
  CHECK_THAT(*report.evaluation_error, contains_text("more than the limit of 4194304"));
  CHECK(checkpoint::open(o.output).file_bytes() == report.bytes);
  CHECK_FALSE(fs::exists(testing::partial_of(o.output)));
  CHECK(compression_report_from_json(to_json(report)).evaluation_error == report.evaluation_error);
}

TEST_CASE("an error while a GGUF file is put together keeps what --resume completes", "[resume]") {
  const fixture f("llama3");
  const temporary_directory directory;
  compress_options o = short_run(f.directory, directory / "whole.gguf");
  o.format = output_format::gguf;
  o.type = dtype::q8_0;
  compress(o);
  const std::string whole = llm_test::read(o.output);
  o.output = directory / "out.gguf";
  {
    const file_size_limit limit(whole.size() - 1);
    CHECK_THAT(file_error_of([&] { compress(o); }),
               contains_text("model.gguf: cannot be written: File too large"));
  }
  CHECK_FALSE(fs::exists(o.output));
  REQUIRE(fs::exists(testing::partial_of(o.output) / "journal.json"));
  o.resume = true;
  compress(o);
  CHECK(llm_test::read(o.output) == whole);
  CHECK_FALSE(fs::exists(testing::partial_of(o.output)));
}

TEST_CASE("a kill after a GGUF file is in its place leaves nothing for long", "[resume]") {
  const temporary_directory directory;
  const fs::path output = directory / "out.gguf";
  llm_test::write(output, "complete");
  fs::create_directories(testing::partial_of(output) / "scratch");
  llm_test::write(testing::partial_of(output) / "lock", "");
  CHECK_THROWS_AS(checkpoint_writer(output, {}, {.gguf = true}), usage_error);
  CHECK_FALSE(fs::exists(testing::partial_of(output)));
  CHECK(llm_test::read(output) == "complete");
}

} // namespace ressvd_llm
