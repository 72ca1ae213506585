// SPDX-License-Identifier: Apache-2.0
#include <nlohmann/json.hpp>

#include "fixture.hpp"
#include "io/checkpoint_writer.hpp"
#include "llm/io/run_command.hpp"
#include "llm/io/temporary.hpp"
#include "model/generation.hpp"
#include "support/catch.hpp"

using namespace ressvd_llm;
using namespace ressvd_llm::testing;

using llm_test::outcome;
using llm_test::run_command;

namespace {

nlohmann::json read_json(const std::filesystem::path& file) {
  return nlohmann::json::parse(llm_test::read(file));
}

// A LLaMA of one layer whose tokens are bytes.
void write_byte_model(const std::filesystem::path& directory, const std::filesystem::path& input) {
  model_config config;
  config.hidden_size = 8;
  config.intermediate_size = 12;
  config.heads = config.kv_heads = 2;
  config.head_dim = 4;
  const nlohmann::json text = {{"architectures", {"LlamaForCausalLM"}},
                               {"hidden_size", config.hidden_size},
                               {"intermediate_size", config.intermediate_size},
                               {"num_hidden_layers", 1},
                               {"num_attention_heads", config.heads},
                               {"vocab_size", 256},
                               {"max_position_embeddings", 32},
                               {"rms_norm_eps", 1e-5},
                               {"tie_word_embeddings", true},
                               {"bos_token_id", 10},
                               {"eos_token_id", 10},
                               {"tokenizer", "bytes"}};
  checkpoint_writer writer(directory, input);
  const auto add = [&](const std::string& name, const std::vector<std::int64_t>& shape) {
    std::int64_t elements = 1;
    for (const std::int64_t extent : shape)
      elements *= extent;
    writer.add(name, shape, random_values(elements, static_cast<unsigned>(elements)), dtype::f32);
  };
  add("model.embed_tokens.weight", {256, config.hidden_size});
  add("model.norm.weight", {config.hidden_size});
  add("model.layers.0.input_layernorm.weight", {config.hidden_size});
  add("model.layers.0.post_attention_layernorm.weight", {config.hidden_size});
  for (const linear_module& module : linear_modules(config, 0))
    add(module.weight_name(), {module.out, module.in});
  writer.add_file("config.json", text.dump());
  writer.commit();
}

// A tokenizer.json of letters, where <s> comes before a text.
void write_letter_tokenizer(const std::filesystem::path& file) {
  nlohmann::json vocabulary;
  for (int letter = 0; letter < 26; ++letter)
    vocabulary[std::string(1, static_cast<char>('a' + letter))] = letter;
  const nlohmann::json token = {{"id", 26},        {"content", "<s>"}, {"single_word", false},
                                {"lstrip", false}, {"rstrip", false},  {"normalized", false},
                                {"special", true}};
  auto before = nlohmann::json::array();
  before.push_back({{"SpecialToken", {{"id", "<s>"}}}});
  before.push_back({{"Sequence", {{"id", "A"}}}});
  const nlohmann::json content = {
      {"added_tokens", nlohmann::json::array({token})},
      {"model", {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", nlohmann::json::array()}}},
      {"post_processor",
       {{"type", "TemplateProcessing"},
        {"single", before},
        {"special_tokens", {{"<s>", {{"ids", nlohmann::json::array({26})}}}}}}},
      {"decoder", {{"type", "Fuse"}}}};
  llm_test::write(file, content.dump());
}

} // namespace

namespace {

std::vector<std::string> short_compression(const std::filesystem::path& model,
                                           const std::filesystem::path& output) {
  return {"compress",    model.string(),       output.string(),    "--ratio=0.4",
          "--samples=8", "--seqlen=16",        "--method=svd-llm", "--allocation=uniform",
          "--threads=1", "--heldout-samples=2"};
}

} // namespace

TEST_CASE("a report that cannot be written is refused before the run") {
  const fixture f("llama");
  const llm_test::temporary_directory scratch;
  const std::string model = f.directory.string();
  const std::string tokens = (f.directory / "tokens.u16").string();
  const std::string nowhere = scratch / "nodir" / "a.json";
  auto compression = short_compression(f.directory, scratch / "out");
  compression.insert(compression.end(), {"--json", nowhere});
  for (const std::vector<std::string>& command :
       {compression,
        {"perplexity", model, "--tokens", tokens, "--seqlen", "16", "--json", nowhere},
        {"compare", model, model, "--tokens", tokens, "--seqlen", "16", "--json", nowhere},
        {"generate", model, "--prompt-tokens", tokens, "--tokens", "2", "--json", nowhere},
        {"inspect", model, "--json", nowhere},
        {"sample", model, scratch / "nodir" / "a.u16", "--samples", "2", "--seqlen", "16"}}) {
    INFO(command.front());
    const outcome result = run_command(command);
    CHECK(result.status == 2);
    CHECK(result.out.empty());
    CHECK_THAT(result.err, contains_text("nodir/a.") &&
                               contains_text("cannot be written: No such file or directory"));
    CHECK(std::count(result.err.begin(), result.err.end(), '\n') == 1);
    CHECK(std::filesystem::is_empty(scratch.path()));
  }
}

TEST_CASE("a report may lie in the output") {
  const fixture f("llama");
  const llm_test::temporary_directory scratch;
  auto compression = short_compression(f.directory, scratch / "out");
  compression.insert(compression.end(), {"--json", scratch / "out" / "report.json"});
  REQUIRE(run_command(compression).status == 0);
  CHECK(read_json(scratch / "out" / "report.json").contains("heldout"));
}

TEST_CASE("a report takes no name of a checkpoint") {
  const llm_test::temporary_directory scratch;
  const std::filesystem::path model = scratch / "model";
  std::filesystem::copy(fixture("llama").directory, model);
  const auto before = llm_test::tree(model);
  for (const std::filesystem::path& json :
       {scratch / "out", scratch / "out/", scratch / "out/config.json",
        scratch / "out/model.safetensors", scratch / "out/x/../tokens.u16",
        model / "config.json"}) {
    INFO(json);
    auto compression = short_compression(model, scratch / "out");
    compression.insert(compression.end(), {"--json", json.string()});
    const outcome result = run_command(compression);
    CHECK(result.status == 2);
    CHECK_THAT(result.err, contains_text("--json " + json.string() + ": "));
    CHECK_FALSE(std::filesystem::exists(scratch / "out"));
    CHECK(llm_test::tree(model) == before);
  }
}

TEST_CASE("an error that leaves a partial output says how to go on") {
  const fixture f("llama");
  const llm_test::temporary_directory scratch;
  const auto command = short_compression(f.directory, scratch / "it's out");
  REQUIRE(run_command(short_compression(f.directory, scratch / "whole")).status == 0);
  const auto whole = llm_test::tree(scratch / "whole");
  outcome result;
  {
    const llm_test::file_size_limit limit(whole.at("model.safetensors").size() - 1);
    result = run_command(command);
  }
  CHECK(result.status == 2);
  CHECK_THAT(result.err,
             contains_text("it's out.partial keeps what is done; to go on:\n  ressvd-llm compress "
                           "--resume " +
                           f.directory.string() + " '") &&
                 contains_text("it'\\''s out' --ratio=0.4"));
  auto resumed = command;
  resumed.push_back("--resume");
  REQUIRE(run_command(resumed).status == 0);
  CHECK(llm_test::tree(scratch / "it's out") == whole);
}

TEST_CASE("a failed evaluation ends with status 1 beside the output and its report") {
  const fixture f("llama");
  const llm_test::temporary_directory scratch;
  std::filesystem::copy(f.directory, scratch / "model");
  // A config just below the reader's limit, which the list of ranks takes beyond it.
  nlohmann::json config = read_json(scratch / "model" / "config.json");
  config["note"] = std::string(4'194'304 - config.dump().size() - 20, 'x');
  llm_test::write(scratch / "model" / "config.json", config.dump());
  auto command = short_compression(scratch / "model", scratch / "out");
  command.insert(command.end(), {"--json", scratch / "report.json"});
  const outcome result = run_command(command);
  CHECK(result.status == 1);
  CHECK_THAT(result.out, contains_text("% of the layers' matrix parameters removed"));
  CHECK_THAT(result.err, contains_text("out is complete, but its evaluation failed: "));
  CHECK(std::filesystem::exists(scratch / "out" / "model.safetensors"));
  CHECK(read_json(scratch / "report.json")["heldout"].is_null());
}

TEST_CASE("perplexity reports what the library computes") {
  const fixture f("mistral");
  const llm_test::temporary_directory scratch;
  const std::string model = f.directory.string();
  const std::string tokens = (f.directory / "tokens.u16").string();
  const std::string report = scratch / "report.json";
  const language_model loaded = language_model::open(f.directory);
  cpu_forward engine(f.config);
  for (const int overlap : {0, 1}) {
    const outcome result = run_command({"perplexity", model, "--tokens", tokens, "--seqlen", "16",
                                        "--overlap", std::to_string(overlap), "--max-windows", "3",
                                        "--backend", "cpu", "--json", report});
    REQUIRE(result.status == 0);
    CHECK(result.err.empty());
    const perplexity_result expected =
        perplexity(loaded, engine,
                   cut_windows(f.tokens, {.length = 16, .overlap = overlap, .max_windows = 3}));
    const nlohmann::json json = read_json(report);
    CHECK(json["perplexity"].get<double>() == Approx(expected.perplexity).epsilon(rounding));
    CHECK(json["windows"] == 3);
    CHECK(json["predicted_tokens"] == 3 * (15 + overlap));
    CHECK_THAT(result.out, contains_text("perplexity " +
                                         std::to_string(static_cast<int>(expected.perplexity))));
  }
  // By default windows reach as far as the model: 64 tokens.
  REQUIRE(run_command({"perplexity", model, "--tokens", tokens, "--json", report}).status == 0);
  CHECK(read_json(report)["seqlen"] == 64);
}

TEST_CASE("perplexity refuses what it cannot measure, in one line") {
  const fixture f("opt");
  const llm_test::temporary_directory scratch;
  const std::string model = f.directory.string();
  const std::string tokens = (f.directory / "tokens.u16").string();
  const auto refused = [&](const std::vector<std::string>& arguments, const std::string& part) {
    const outcome result = run_command(arguments);
    CHECK(result.status == 2);
    CHECK(result.out.empty());
    CHECK_THAT(result.err, contains_text(part));
    CHECK(std::count(result.err.begin(), result.err.end(), '\n') == 1);
  };
  refused({"perplexity", model, "--tokens", tokens, "--seqlen", "81"},
          "80 tokens, fewer than one window of 81");
  refused({"generate", model, "--prompt-tokens", tokens, "--tokens", "3"},
          "a prompt of 80 tokens and --tokens 3: 82 positions, and the model has learned 64");
  refused({"perplexity", model, "--tokens", tokens, "--seqlen", "80", "--overlap", "0"},
          "learned 64 positions");
  refused({"perplexity", model, "--text", (scratch / "none.txt").string()}, "tokenizer");
  CHECK(run_command({"perplexity", model}).status == 2);
  CHECK(run_command({"perplexity", model, "--tokens", tokens, "--overlap", "2"}).status == 2);
}

TEST_CASE("positions beyond the context that a model can compute are told") {
  const fixture f("llama");
  const std::string model = f.directory.string();
  const std::string tokens = (f.directory / "tokens.u16").string();
  const auto warned = [&](const std::vector<std::string>& arguments) {
    const outcome result = run_command(arguments);
    CHECK(result.status == 0);
    return result.err;
  };
  CHECK(warned({"perplexity", model, "--tokens", tokens, "--seqlen", "64"}).empty());
  CHECK_THAT(warned({"perplexity", model, "--tokens", tokens, "--seqlen", "65"}),
             contains_text("--seqlen 65: 65 positions, and the model's context is 64"));
  CHECK_THAT(warned({"compare", model, model, "--tokens", tokens, "--seqlen", "70"}),
             contains_text("--seqlen 70: 70 positions, and the model's context is 64"));
  CHECK_THAT(warned({"generate", model, "--prompt-tokens", tokens, "--tokens", "2"}),
             contains_text("81 positions, and the model's context is 64"));
}

TEST_CASE("options that a text or token ids leave without effect are refused") {
  const fixture f("llama");
  const std::string model = f.directory.string();
  const std::string tokens = (f.directory / "tokens.u16").string();
  for (const char* option : {"--samples", "--seed"}) {
    CHECK_THAT(run_command({"compare", model, model, "--tokens", tokens, option, "2"}).err,
               contains_text(std::string("--tokens excludes ") + option));
  }
  CHECK_THAT(run_command({"compare", model, model, "--samples", "2", "--max-windows", "1"}).err,
             contains_text("--max-windows excludes --samples"));
  for (const char* option : {"--top-k", "--seed"}) {
    CHECK_THAT(run_command({"generate", model, "--prompt-tokens", tokens, "--temperature", "0",
                            option, "5"})
                   .err,
               contains_text(std::string(option) + " has no effect with --temperature 0"));
  }
  CHECK_THAT(run_command({"generate", model, "--prompt-tokens", tokens, "--no-bos"}).err,
             contains_text("--no-bos excludes --prompt-tokens"));
}

TEST_CASE("generate continues tokens and texts") {
  const llm_test::temporary_directory scratch;
  const std::string report = scratch / "report.json";
  SECTION("token ids") {
    const fixture f("qwen2");
    const std::vector<std::string> arguments = {"generate",
                                                f.directory.string(),
                                                "--prompt-tokens",
                                                (f.directory / "tokens.u16").string(),
                                                "--tokens",
                                                "12",
                                                "--ignore-eos",
                                                "--seed",
                                                "5",
                                                "--json",
                                                report};
    const outcome result = run_command(arguments);
    REQUIRE(result.status == 0);
    const std::vector<std::int32_t> expected =
        generate(language_model::open(f.directory), f.tokens,
                 {.tokens = 12, .sampling = {.temperature = 0.8, .seed = 5}});
    CHECK(read_json(report)["tokens"].get<std::vector<std::int32_t>>() == expected);
    CHECK_FALSE(read_json(report).contains("top_k"));
    CHECK(run_command(arguments).out == result.out);
  }
  SECTION("bytes") {
    const std::filesystem::path model = scratch / "model";
    write_byte_model(model, scratch.path());
    const outcome result = run_command(
        {"generate", model.string(), "--prompt", "word", "--tokens", "20", "--json", report});
    REQUIRE(result.status == 0);
    CHECK(result.out.starts_with("word"));
    const nlohmann::json json = read_json(report);
    // No token goes before the text, and none ends it.
    CHECK(json["prompt_tokens"] == nlohmann::json({'w', 'o', 'r', 'd'}));
    CHECK(json["tokens"].size() == 20);
    std::string bytes = "word";
    for (const std::int32_t id : json["tokens"].get<std::vector<std::int32_t>>())
      bytes += static_cast<char>(id);
    CHECK(result.out == bytes + "\n");
    CHECK(run_command(
              {"perplexity", model.string(), "--text", (model.parent_path() / "text.txt").string()})
              .status == 2);
    llm_test::write(scratch / "text.txt", std::string(70, 'x'));
    CHECK(run_command({"perplexity", model.string(), "--text", (scratch / "text.txt").string()})
              .status == 0);
  }
  SECTION("tokenizer.json") {
    const std::filesystem::path model = scratch / "model";
    std::filesystem::copy(fixture("llama").directory, model);
    write_letter_tokenizer(model / "tokenizer.json");
    const auto prompt_of = [&](const std::vector<std::string>& more) {
      std::vector<std::string> arguments = {
          "generate", model.string(), "--prompt", "cab", "--tokens", "5", "--json", report};
      arguments.insert(arguments.end(), more.begin(), more.end());
      const outcome result = run_command(arguments);
      INFO(result.err);
      REQUIRE(result.status == 0);
      CHECK(result.out.starts_with("cab"));
      return read_json(report)["prompt_tokens"].get<std::vector<std::int32_t>>();
    };
    // The template's token, which is not the config's.
    CHECK(prompt_of({}) == std::vector<std::int32_t>{26, 2, 0, 1});
    CHECK(prompt_of({"--no-bos"}) == std::vector<std::int32_t>{2, 0, 1});
    std::string text;
    while (text.size() < 200)
      text += "the rank of a matrix";
    llm_test::write(scratch / "text.txt", text);
    const std::string file = (scratch / "text.txt").string();
    CHECK(run_command({"perplexity", model.string(), "--text", file, "--seqlen", "16"}).status ==
          0);
    CHECK(run_command({"compare", model.string(), model.string(), "--text", file, "--seqlen", "16"})
              .status == 0);
    const std::filesystem::path output = scratch / "output";
    CHECK(run_command({"compress", model.string(), output.string(), "--ratio=0.4", "--samples=4",
                       "--seqlen=16", "--method=svd-llm", "--allocation=uniform",
                       "--heldout-samples=0", "--calibration", file})
              .status == 0);
    CHECK(llm_test::read(output / "tokenizer.json") == llm_test::read(model / "tokenizer.json"));
    // A regular expression that a text drives without end is the file's fault.
    auto hostile = read_json(model / "tokenizer.json");
    hostile["normalizer"] = {
        {"type", "Replace"}, {"pattern", {{"Regex", "(?:[a-z]+)+\\z"}}}, {"content", "a"}};
    llm_test::write(model / "tokenizer.json", hostile.dump());
    llm_test::write(scratch / "text.txt", std::string(100, 'a') + "!");
    const outcome refused = run_command({"perplexity", model.string(), "--text", file});
    CHECK(refused.status == 2);
    CHECK_THAT(refused.err, contains_text("takes too many steps on this text"));
  }
  SECTION("a prompt must be given, once") {
    const std::string model = fixture("llama").directory.string();
    CHECK(run_command({"generate", model}).status == 2);
    CHECK(run_command({"generate", model, "--prompt", "a"}).status == 2); // no tokenizer
    CHECK(run_command({"generate", model, "--prompt", "a", "--prompt-tokens", "b"}).status == 2);
  }
}

TEST_CASE("choices reports accuracies and what they come from", "[program][choices]") {
  const temporary_directory scratch;
  const std::filesystem::path model = scratch / "model";
  write_byte_model(model, scratch.path());
  const std::string tasks = (scratch / "tasks.jsonl").string();
  const std::string report = (scratch / "report.json").string();
  llm_test::write(tasks,
                  "{\"task\": \"one\", \"context\": \"a long question, too long for it\", "
                  "\"choices\": [\"yes\", \"no\", \"yes\"], \"answer\": 0}\n"
                  "{\"task\": \"two\", \"contexts\": [\"x\", \"y\"], "
                  "\"choices\": [\"z\", \"z\"], \"answer\": 1}\n");
  const outcome result =
      run_command({"choices", model.string(), "--tasks", tasks, "--json", report});
  REQUIRE(result.status == 0);
  CHECK_THAT(result.out, contains_text("acc_norm"));
  CHECK_THAT(result.out, contains_text("average"));
  const nlohmann::json json = read_json(report);
  REQUIRE(json["tasks"].size() == 2);
  REQUIRE(json["items"].size() == 2);
  const auto sums = json["items"][0]["log_probabilities"].get<std::vector<double>>();
  REQUIRE(sums.size() == 3);
  CHECK(sums[0] == Approx(sums[2]).epsilon(1e-6));
  CHECK(sums[0] < 0);
  CHECK(json["tasks"][0]["acc"] == (sums[0] > sums[1] ? 1 : 0));
  CHECK(json["max_length"] == 32);

  llm_test::write(tasks,
                  "{\"task\": \"t\", \"id\": \"q7\", \"context\": \"c\", "
                  "\"choices\": [\"a\", \"much longer than the model reaches in one go\"], "
                  "\"answer\": 0}\n");
  const outcome refused = run_command({"choices", model.string(), "--tasks", tasks});
  CHECK(refused.status == 2);
  CHECK_THAT(refused.err, contains_text("tasks.jsonl: task t, item q7: a choice of"));
}
