// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "io/checkpoint.hpp"
#include "llm/io/run_command.hpp"
#include "llm/io/temporary.hpp"
#include "support/catch.hpp"

namespace fs = std::filesystem;
using namespace llm_test;

namespace {

/// A LLaMA of one layer: hidden size 4, two heads, MLP of 6, vocabulary of 3; q_proj in two
/// factors of rank 1, as a pair or pivoted.
void write_model(const fs::path& directory, bool pivoted = false) {
  nlohmann::json config = {{"architectures", {"LlamaForCausalLM"}},
                           {"hidden_size", 4},
                           {"intermediate_size", 6},
                           {"num_hidden_layers", 1},
                           {"num_attention_heads", 2},
                           {"vocab_size", 3},
                           {"max_position_embeddings", 8},
                           {"rms_norm_eps", 1e-5},
                           {"ressvd",
                            {{"version", 1},
                             {"method", "svd"},
                             {"ratio", 0.1},
                             {"ranks", {{"model.layers.0.self_attn.q_proj", 1}}}}}};
  struct tensor {
    std::string name;
    std::vector<std::int64_t> shape;
  };
  std::vector<tensor> tensors = {{"model.embed_tokens.weight", {3, 4}},
                                 {"model.layers.0.input_layernorm.weight", {4}},
                                 {"model.layers.0.self_attn.q_u_proj.weight", {4, 1}},
                                 {"model.layers.0.self_attn.q_v_proj.weight", {1, 4}},
                                 {"model.layers.0.self_attn.k_proj.weight", {4, 4}},
                                 {"model.layers.0.self_attn.v_proj.weight", {4, 4}},
                                 {"model.layers.0.self_attn.o_proj.weight", {4, 4}},
                                 {"model.layers.0.post_attention_layernorm.weight", {4}},
                                 {"model.layers.0.mlp.gate_proj.weight", {6, 4}},
                                 {"model.layers.0.mlp.up_proj.weight", {6, 4}},
                                 {"model.layers.0.mlp.down_proj.weight", {4, 6}},
                                 {"model.norm.weight", {4}},
                                 {"lm_head.weight", {3, 4}}};
  if (pivoted) {
    config["ressvd"]["version"] = 2;
    config["ressvd"]["form"] = "pivoted";
    tensors[2] = {"model.layers.0.self_attn.q_c_proj.weight", {3, 1}};
    tensors[3] = {"model.layers.0.self_attn.q_z_proj.weight", {1, 4}};
  }
  std::string header = "{";
  std::uint64_t end = 0;
  for (const auto& tensor : tensors) {
    std::uint64_t bytes = 4;
    for (const std::int64_t extent : tensor.shape)
      bytes *= static_cast<std::uint64_t>(extent);
    header += (end == 0 ? "" : ",") +
              entry(tensor.name, "F32", ressvd_llm::to_string(tensor.shape), end, end + bytes);
    end += bytes;
  }
  std::string data = bytes_of(std::vector<float>(end / 4, 0.5f));
  if (pivoted) {
    header += "," + entry("model.layers.0.self_attn.q_c_proj.rows", "I32", "[4]", end, end + 16);
    data += bytes_of(std::vector<std::int32_t>{2, 0, 1, 3});
  }
  fs::create_directory(directory);
  write(directory / "config.json", config.dump());
  write(directory / "model.safetensors", safetensors(header + "}", data));
}

} // namespace

TEST_CASE("inspect reports shapes, ranks and parameters", "[program]") {
  const temporary_directory directory;
  write_model(directory / "model");
  const std::string report = (directory / "report.json").string();
  const outcome result = run_command({"inspect", (directory / "model").string(), "--json", report});
  CHECK(result.status == 0);
  CHECK(result.err.empty());
  CHECK_THAT(result.out, contains_text("LlamaForCausalLM, 1 layers"));
  CHECK_THAT(result.out, contains_text("q_proj"));
  CHECK_THAT(result.out, contains_text("dense"));

  const auto inspected = nlohmann::json::parse(read(report));
  // Embedding, head and final norm; norms of the layer; its matrices.
  const int matrices = 8 + 3 * 16 + 3 * 24;
  CHECK(inspected["matrix_parameters"] == matrices);
  CHECK(inspected["dense_matrix_parameters"] == matrices - 8 + 16);
  CHECK(inspected["parameters"] == 12 + 12 + 4 + 8 + matrices);
  CHECK(inspected["layers"].size() == 1);
  CHECK(inspected["layers"][0]["parameters"] == 8 + matrices);
  CHECK(inspected["layers"][0]["matrices"][0]["name"] == "q_proj");
  CHECK(inspected["layers"][0]["matrices"][0]["rank"] == 1);
  CHECK(inspected["layers"][0]["matrices"][1]["rank"].is_null());
  CHECK(inspected["removed_share"] == Approx(8.0 / (matrices + 8)));
  CHECK(inspected["method"] == "svd");
  CHECK(inspected["form"] == "pair");
  CHECK(inspected["layers"][0]["matrices"][0]["form"] == "pair");
  CHECK(inspected["layers"][0]["matrices"][1]["form"] == "dense");
}

TEST_CASE("inspect counts pivoted matrices without the order of their rows", "[program]") {
  const temporary_directory directory;
  write_model(directory / "model", true);
  const std::string report = (directory / "report.json").string();
  const outcome result = run_command({"inspect", (directory / "model").string(), "--json", report});
  CHECK(result.err.empty());
  REQUIRE(result.status == 0);
  CHECK_THAT(result.out, contains_text("compressed by svd (pivoted)"));

  const auto inspected = nlohmann::json::parse(read(report));
  const int matrices = 7 + 3 * 16 + 3 * 24;
  CHECK(inspected["form"] == "pivoted");
  CHECK(inspected["element_types"] == nlohmann::json{"F32"});
  CHECK(inspected["matrix_parameters"] == matrices);
  CHECK(inspected["parameters"] == 12 + 12 + 4 + 8 + matrices);
  CHECK(inspected["layers"][0]["parameters"] == 8 + matrices);
  const auto& q = inspected["layers"][0]["matrices"][0];
  CHECK(q["form"] == "pivoted");
  CHECK(q["rank"] == 1);
  CHECK(q["parameters"] == 7);
}

TEST_CASE("a file that cannot be used ends the program with status 2 and one line", "[program]") {
  const temporary_directory directory;
  const fs::path model = directory / "model";
  write_model(model);
  const std::string weights = read(model / "model.safetensors");
  const std::string config = read(model / "config.json");
  std::string expected;
  SECTION("no model") {
    fs::remove_all(model);
    expected = "model: no such directory";
  }
  SECTION("truncated weights") {
    write(model / "model.safetensors", weights.substr(0, weights.size() - 1));
    expected = "model.safetensors: tensor lm_head.weight: its data range";
  }
  SECTION("missing key") {
    write(model / "config.json", "{\"architectures\":[\"LlamaForCausalLM\"]}");
    expected = "config.json: key 'hidden_size' is missing";
  }
  SECTION("shape against the config") {
    auto other = nlohmann::json::parse(config);
    other["intermediate_size"] = 5;
    write(model / "config.json", other.dump());
    expected =
        "model.safetensors: tensor model.layers.0.mlp.gate_proj.weight: shape [6, 4] where "
        "[5, 4] is expected";
  }
  SECTION("missing layer") {
    auto other = nlohmann::json::parse(config);
    other["num_hidden_layers"] = 2;
    write(model / "config.json", other.dump());
    expected = "model: tensor model.layers.1.self_attn.q_proj.weight: missing";
  }
  SECTION("rank against the config") {
    auto other = nlohmann::json::parse(config);
    other["ressvd"]["ranks"]["model.layers.0.self_attn.q_proj"] = 2;
    write(model / "config.json", other.dump());
    expected = "its rank in the config is not that of the checkpoint";
  }
  SECTION("form against the config") {
    auto other = nlohmann::json::parse(config);
    other["ressvd"]["version"] = 2;
    other["ressvd"]["form"] = "pivoted";
    write(model / "config.json", other.dump());
    expected = "its form in the config is not that of the checkpoint";
  }
  SECTION("unwritable report") {
    expected = "x/report.json.tmp: cannot be written: No such file or directory";
  }
  const auto before = tree(directory.path());
  const outcome result = run_command(
      {"inspect", model.string(), "--json", (directory / "x" / "report.json").string()});
  CHECK(result.status == 2);
  CHECK_THAT(result.err, contains_text("ressvd-llm: ") && contains_text(expected));
  CHECK(std::count(result.err.begin(), result.err.end(), '\n') == 1);
  CHECK(tree(directory.path()) == before);
}

TEST_CASE("a command line that cannot be understood ends with status 2", "[program]") {
  CHECK(run_command({}).status == 2);
  CHECK(run_command({"inspect"}).status == 2);
  CHECK(run_command({"inspect", "x", "--unknown"}).status == 2);
  CHECK_THAT(run_command({"inspect"}).err, contains_text("MODEL is required"));
  CHECK(run_command({"--help"}).status == 0);
  CHECK(run_command({"inspect", "--help"}).status == 0);
  CHECK_THAT(run_command({"--help"}).out, contains_text("inspect"));
  CHECK(run_command({"--version"}).status == 0);
  const outcome method = run_command({"compress", "x", "y", "--method", "pca"});
  CHECK(method.status == 2);
  CHECK_THAT(method.err, contains_text("there is no method 'pca'") && contains_text("svd-llm"));
}

TEST_CASE("a value out of range is refused with what is expected, before anything is written",
          "[program]") {
  const temporary_directory directory;
  write_model(directory / "model");
  const std::string model = (directory / "model").string();
  const auto before = tree(directory.path());
  const auto refused = [&](std::vector<std::string> arguments, const std::string& message) {
    INFO(arguments.front() << " " << message);
    const outcome result = run_command(arguments);
    CHECK(result.status == 2);
    CHECK_THAT(result.err, contains_text(message));
    CHECK(result.err.size() < 200);
    CHECK(tree(directory.path()) == before);
  };
  const auto compress = [&](const std::string& option, const std::string& value,
                            const std::string& message) {
    refused({"compress", model, (directory / "out").string(), option, value}, message);
  };
  compress("--step", "0", "--step: expected a whole number from 1 on, not 0");
  compress("--step", "1.5", "not 1.5");
  compress("--probe-ranks", "3", "expected a whole number from 1 to 2, not 3");
  compress("--ridge", "-1", "expected a number from 0 on, not -1");
  compress("--update-target", "2", "expected a number from 0 to 1, not 2");
  compress("--method", "frob", "there is no method 'frob'");
  compress("--method", "3", "there is no method '3'");
  for (const char* option : {"--backend", "--format", "--windows", "--allocation", "--preset"}) {
    compress(option, "1", std::string(option) + ": 1 not in {");
    compress(option, "frob", std::string(option) + ": frob not in {");
  }
  compress("--ratio", "20",
           "--ratio: expected a share of at least 0 and below 1, not 20; 20 % is 0.2");
  compress("--ratio", "1", "1 % is 0.01");
  compress("--ratio", "-0.1", "below 1, not -0.1");
  const std::vector<std::vector<std::string>> threaded{
      {"compress", model, (directory / "out").string()},
      {"perplexity", model, "--text", "x.txt"},
      {"compare", model, model},
      {"generate", model, "--prompt", "x"},
      {"sample", model, (directory / "out.u16").string()}};
  for (std::vector<std::string> arguments : threaded) {
    arguments.insert(arguments.end(), {"--threads", ""});
    for (const char* count : {"100000", "0", "-3"}) {
      arguments.back() = count;
      refused(arguments, std::string("--threads: expected a whole number from 1 to "));
    }
  }
}
