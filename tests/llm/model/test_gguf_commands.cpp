// SPDX-License-Identifier: Apache-2.0
#include <filesystem>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "fixture.hpp"
#include "llm/io/run_command.hpp"
#include "llm/io/temporary.hpp"
#include "support/catch.hpp"

using namespace ressvd_llm;
using namespace ressvd_llm::testing;
using llm_test::outcome;
using llm_test::run_command;
using llm_test::temporary_directory;

namespace {

std::string gguf_of(const std::string& name) {
  return (std::filesystem::path(RESSVD_LLM_FIXTURES) / "gguf" / (name + ".gguf")).string();
}

} // namespace

TEST_CASE("commands take a GGUF file where they take a model directory", "[gguf]") {
  const fixture f("llama_linear");
  const temporary_directory dir;
  const std::string tokens = (f.directory / "tokens.u16").string();
  std::vector<std::string> perplexities;
  std::vector<std::string> texts;
  for (const std::string& model : {f.directory.string(), gguf_of("llama_linear")}) {
    const auto json = (dir / "report.json").string();
    REQUIRE(run_command({"perplexity", model, "--tokens", tokens, "--seqlen=40", "--json", json})
                .status == 0);
    perplexities.push_back(nlohmann::json::parse(llm_test::read(json))["perplexity"].dump());
    const outcome generated = run_command({"generate", model, "--prompt-tokens", tokens,
                                           "--tokens=1", "--temperature=0", "--ignore-eos"});
    texts.push_back(generated.out + std::to_string(generated.status));
    CHECK(run_command({"inspect", model}).status == 0);
    CHECK(run_command({"compare", f.directory.string(), model, "--tokens", tokens, "--seqlen=40"})
              .status == 0);
  }
  CHECK(perplexities[0] == perplexities[1]);
  CHECK(texts[0] == texts[1]);
}

TEST_CASE("a tokenizer comes along, and its texts stay the same", "[gguf]") {
  const temporary_directory dir;
  const auto model = dir / "model";
  std::filesystem::copy(fixture("qwen2").directory, model);
  nlohmann::json vocabulary;
  for (int letter = 0; letter < 26; ++letter)
    vocabulary[std::string(1, static_cast<char>('a' + letter))] = letter;
  vocabulary["th"] = 26;
  nlohmann::json content = {
      {"added_tokens", nlohmann::json::array()},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
      {"model",
       {{"type", "BPE"},
        {"vocab", vocabulary},
        {"merges", nlohmann::json::array({nlohmann::json::array({"t", "h"})})}}},
      {"decoder", {{"type", "ByteLevel"}}}};
  const auto write_tokenizer = [&] { llm_test::write(model / "tokenizer.json", content.dump()); };
  write_tokenizer();
  llm_test::write(dir / "text.txt", "the other thing that they thought was there and then thrown");
  const auto report_of = [&](const std::filesystem::path& path) {
    REQUIRE(run_command({"perplexity", path.string(), "--text", (dir / "text.txt").string(),
                         "--seqlen=16", "--json", (dir / "report.json").string()})
                .status == 0);
    return nlohmann::json::parse(llm_test::read(dir / "report.json"));
  };
  const auto file = dir / "model.gguf";
  const outcome converted = run_command({"convert", model.string(), file.string(), "--dtype=f32"});
  REQUIRE(converted.status == 0);
  CHECK(converted.out.find("without a tokenizer") == std::string::npos);
  CHECK(report_of(file)["perplexity"] == report_of(model)["perplexity"]);
  const outcome generated =
      run_command({"generate", file.string(), "--prompt=the", "--tokens=4", "--ignore-eos"});
  CHECK(generated.status == 0);
  CHECK(generated.out.starts_with("the"));

  content["model"]["byte_fallback"] = true;
  write_tokenizer();
  const outcome bare = run_command({"convert", model.string(), (dir / "bare.gguf").string()});
  CHECK(bare.status == 0);
  CHECK_THAT(bare.out, contains_text("without a tokenizer"));
  CHECK_THAT(bare.err, contains_text("tokenizer.json: is not byte-level BPE"));
  const outcome refused = run_command(
      {"perplexity", (dir / "bare.gguf").string(), "--text", (dir / "text.txt").string()});
  CHECK(refused.status == 2);
  CHECK_THAT(refused.err, contains_text("bare.gguf: holds no tokenizer: give token ids"));
}

TEST_CASE("a model is converted, and its loss corrected", "[gguf]") {
  const fixture f("qwen2");
  const temporary_directory dir;
  const std::string model = f.directory.string();
  const std::string base = (dir / "base.gguf").string();
  const std::string adapter = (dir / "adapter.gguf").string();
  const std::string json = (dir / "report.json").string();
  const outcome converted = run_command({"convert", model, base, "--dtype=q4_0"});
  REQUIRE(converted.status == 0);
  CHECK_THAT(converted.out, contains_text("without a tokenizer"));
  const std::vector<std::string> correct = {
      "correct",  base,           adapter,       "--original",          model,
      "--rank=8", "--samples=16", "--seqlen=16", "--heldout-samples=4", "--threads=1"};
  std::vector<std::string> reported = correct;
  reported.insert(reported.end(), {"--json", json});
  const outcome corrected = run_command(reported);
  REQUIRE(corrected.status == 0);
  CHECK_THAT(corrected.out, contains_text("14 matrices corrected"));
  const auto report = nlohmann::json::parse(llm_test::read(json));
  CHECK(report["matrices"].size() == 14);
  CHECK(report["heldout"]["original"]["divergence"] == 0);
  CHECK(report["heldout"]["corrected"]["divergence"].get<double>() <
        report["heldout"]["model"]["divergence"].get<double>());

  const outcome again = run_command(correct);
  CHECK(again.status == 2);
  CHECK_THAT(again.err, contains_text("adapter.gguf: exists"));
  std::vector<std::string> pointless = correct;
  pointless[2] = (dir / "other.gguf").string();
  pointless.emplace_back("--windows=first");
  const outcome refused = run_command(pointless);
  CHECK(refused.status == 2);
  CHECK_THAT(refused.err, contains_text("--windows has no effect with the other options; it goes "
                                        "with --calibration FILE"));
}

TEST_CASE("a model is compressed to a quantised base with an adapter", "[gguf]") {
  const fixture f("qwen2");
  const temporary_directory dir;
  const std::string out = (dir / "out.gguf").string();
  const std::string json = (dir / "report.json").string();
  const std::vector<std::string> good = {"compress",
                                         f.directory.string(),
                                         out,
                                         "--format=gguf-adapter",
                                         "--dtype=q8_0",
                                         "--rank=4",
                                         "--samples=16",
                                         "--seqlen=16",
                                         "--threads=1",
                                         "--heldout-samples=4"};
  const auto refusal = [&](const std::string& option) {
    auto line = good;
    line.push_back(option);
    const outcome refused = run_command(line);
    CHECK(refused.status == 2);
    CHECK(std::filesystem::is_empty(dir.path()));
    return refused.err;
  };
  for (const char* const option : {"--ratio=0.3", "--method=svd", "--preset=best", "--refine=2",
                                   "--form=pair", "--resume", "--allocation=uniform"}) {
    const std::string whole = option;
    const std::string name = whole.substr(0, whole.find('='));
    CHECK_THAT(refusal(option), contains_text(name + " has no effect with --format gguf-adapter"));
  }
  CHECK_THAT(refusal("--windows=first"), contains_text("--windows has no effect"));
  CHECK_THAT(refusal("--json=" + (dir / "out.lora.gguf").string()),
             contains_text("this is the output itself"));
  auto line = good;
  line.insert(line.end(), {"--json", json});
  const outcome made = run_command(line);
  REQUIRE(made.status == 0);
  CHECK_THAT(made.err, contains_text("a base of type Q8_0 and an adapter of rank 4"));
  CHECK_THAT(made.out, contains_text("out.lora.gguf: 14 matrices corrected"));
  const auto report = nlohmann::json::parse(llm_test::read(json));
  CHECK(report["model"] == out);
  CHECK(report["model_bytes"] == std::filesystem::file_size(out));
  const outcome rank =
      run_command({"compress", f.directory.string(), (dir / "x").string(), "--rank=4"});
  CHECK(rank.status == 2);
  CHECK_THAT(rank.err, contains_text("--rank goes with --format gguf-adapter"));
}

TEST_CASE("what GGUF cannot hold is refused by the commands", "[gguf]") {
  const temporary_directory dir;
  const std::string output = (dir / "out.gguf").string();
  const outcome opt = run_command({"convert", fixture("opt").directory.string(), output});
  CHECK(opt.status == 2);
  CHECK_THAT(opt.err, contains_text("GGUF has no architecture for models of the family opt"));
  const outcome report = run_command({"compress", fixture("llama").directory.string(), output,
                                      "--format=gguf", "--json", output + "/report.json"});
  CHECK(report.status == 2);
  CHECK_THAT(report.err, contains_text("report.json.tmp: cannot be written"));
  CHECK(std::filesystem::is_empty(dir.path()));
}
