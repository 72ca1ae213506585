// SPDX-License-Identifier: Apache-2.0
#include "io/checkpoint.hpp"

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <sys/stat.h>

#include "llm/io/temporary.hpp"
#include "support/catch.hpp"

namespace fs = std::filesystem;
using namespace llm_test;
using ressvd_llm::checkpoint;
using ressvd_llm::read_f32;

namespace {

const std::string first_shard = safetensors("{" + entry("a", "F32", "[2,2]", 0, 16) + "}",
                                            bytes_of(std::vector<float>{1, 2, 3, 4}));
const std::string second_shard = safetensors(
    "{" + entry("b", "BF16", "[2]", 0, 4) + "," + entry("ids", "I64", "[1]", 4, 12) + "}",
    bytes_of(std::vector<std::uint16_t>{0x3f80, 0xbf80}) + bytes_of(std::vector<std::int64_t>{7}));

std::string index_of(const std::string& a, const std::string& b) {
  return "{\"metadata\":{\"total_size\":20},\"weight_map\":{\"a\":\"" + a + "\",\"b\":\"" + b +
         "\"}}";
}

/// A model of two shards in `directory`, with this index.
void write_shards(const fs::path& directory, const std::string& index) {
  write(directory / "model-00001-of-00002.safetensors", first_shard);
  write(directory / "model-00002-of-00002.safetensors", second_shard);
  write(directory / "model.safetensors.index.json", index);
}

std::string refusal_of_index(const std::string& index) {
  const temporary_directory directory;
  write_shards(directory.path(), index);
  return file_error_of([&] { checkpoint::open(directory.path()); });
}

} // namespace

TEST_CASE("a single file is read", "[checkpoint]") {
  const temporary_directory directory;
  write(directory / "model.safetensors", second_shard);
  const checkpoint model = checkpoint::open(directory.path());
  CHECK(model.names() == std::vector<std::string>{"b", "ids"});
  CHECK(model.contains("b"));
  CHECK(!model.contains("a"));
  CHECK(read_f32(model, "b", {2}) == std::vector<float>{1, -1});
  CHECK(ressvd_llm::read_f64(model, "b", {2}) == std::vector<double>{1, -1});
  CHECK(model.file_of("b") == directory / "model.safetensors");
  CHECK(model.file_bytes() == second_shard.size());
  CHECK(model.describe("ids").type == "I64");
  CHECK(model.describe("ids").bytes == 8);
}

TEST_CASE("views outlive the object that gave them while a copy lives", "[checkpoint]") {
  const temporary_directory directory;
  write(directory / "model.safetensors", first_shard);
  auto model = std::make_unique<checkpoint>(checkpoint::open(directory.path()));
  const checkpoint copy = *model;
  const ressvd_llm::tensor_view& view = model->at("a");
  model.reset();
  CHECK(view.bytes() == 16);
  std::vector<float> values(4);
  ressvd_llm::decode(view.type, view.data, std::span(values));
  CHECK(values == std::vector<float>{1, 2, 3, 4});
}

TEST_CASE("shards are read through their index", "[checkpoint]") {
  const temporary_directory directory;
  write_shards(directory.path(),
               index_of("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"));
  const checkpoint model = checkpoint::open(directory.path());
  CHECK(read_f32(model, "a", {2, 2}) == std::vector<float>{1, 2, 3, 4});
  CHECK(read_f32(model, "b", {2}) == std::vector<float>{1, -1});
  CHECK(model.file_of("a") == directory / "model-00001-of-00002.safetensors");
  CHECK(model.file_bytes() == first_shard.size() + second_shard.size());
  // The index does not name it.
  CHECK(!model.contains("ids"));
}

TEST_CASE("an index must name shards that exist and hold what it says", "[checkpoint]") {
  CHECK_THAT(
      refusal_of_index(index_of("model-00001-of-00002.safetensors", "gone.safetensors")),
      contains_text("tensor b: its shard ") && contains_text("gone.safetensors: no such file"));
  CHECK_THAT(
      refusal_of_index(
          index_of("model-00002-of-00002.safetensors", "model-00002-of-00002.safetensors")),
      contains_text("model-00002-of-00002.safetensors: tensor a: missing, although the index "
                    "places it here"));
  CHECK_THAT(refusal_of_index("{}"),
             contains_text("model.safetensors.index.json: has no object 'weight_map'"));
  CHECK_THAT(refusal_of_index("[1]"), contains_text("has no object 'weight_map'"));
  CHECK_THAT(refusal_of_index("{\"weight_map\":[]}"), contains_text("has no object 'weight_map'"));
  CHECK_THAT(refusal_of_index("{\"weight_map\":{\"a\":5}}"),
             contains_text("tensor a: its shard is not a file name"));
  CHECK_THAT(refusal_of_index("{\"weight_map\":"),
             contains_text("model.safetensors.index.json: is not valid JSON (at byte"));
  CHECK_THAT(refusal_of_index(std::string(100'000, '[')),
             contains_text("is JSON nested too deeply"));
  CHECK_THAT(refusal_of_index(std::string(17'000'000, ' ')),
             contains_text("has 17000000 bytes, more than the limit of 16777216"));
}

TEST_CASE("shard names cannot leave the directory", "[checkpoint]") {
  const temporary_directory directory;
  fs::create_directory(directory / "model");
  write(directory / "x", second_shard);
  const std::string inside = "model-00001-of-00002.safetensors";
  for (const std::string& name :
       {std::string("../x"), (directory / "x").string(), std::string("."), std::string(".."),
        std::string("sub/x"), std::string(""), std::string("..\\\\x"), std::string("a\\u0000b")}) {
    CAPTURE(name);
    write_shards(directory / "model", index_of(inside, name));
    CHECK_THAT(file_error_of([&] { checkpoint::open(directory / "model"); }),
               contains_text("tensor b: its shard") && contains_text("is not a plain file name"));
  }
}

TEST_CASE("links out of the directory are refused", "[checkpoint]") {
  const temporary_directory directory;
  fs::create_directory(directory / "model");
  write(directory / "x", second_shard);
  fs::create_symlink("../x", directory / "model" / "model.safetensors");
  CHECK_THAT(
      file_error_of([&] { checkpoint::open(directory / "model"); }),
      contains_text("model.safetensors: is a symbolic link out of the model directory, to '" +
                    fs::canonical(directory / "x").string() + "'; replace it by a copy"));

  fs::remove(directory / "model" / "model.safetensors");
  fs::create_symlink(directory / "nothing", directory / "model" / "model.safetensors");
  CHECK_THAT(file_error_of([&] { checkpoint::open(directory / "model"); }),
             contains_text("model.safetensors: no such file"));

  write_shards(directory / "model", index_of("model-00001-of-00002.safetensors", "b.safetensors"));
  fs::remove(directory / "model" / "model.safetensors");
  fs::create_symlink(directory / "x", directory / "model" / "b.safetensors");
  CHECK_THAT(file_error_of([&] { checkpoint::open(directory / "model"); }),
             contains_text("b.safetensors: is a symbolic link out of the model directory"));
}

TEST_CASE("links inside the directory and a linked directory are followed", "[checkpoint]") {
  const temporary_directory directory;
  fs::create_directory(directory / "model");
  write(directory / "model" / "weights", second_shard);
  fs::create_symlink("weights", directory / "model" / "model.safetensors");
  fs::create_directory_symlink("model", directory / "alias");
  CHECK(checkpoint::open(directory / "model").contains("b"));
  CHECK(checkpoint::open(directory / "alias").contains("b"));
}

TEST_CASE("links into the blobs of the Hugging Face cache are followed", "[checkpoint]") {
  const temporary_directory directory;
  const fs::path cached = directory / "models--org--name";
  fs::create_directories(cached / "blobs");
  fs::create_directories(cached / "snapshots" / "0123");
  write(cached / "blobs" / "abcd", second_shard);
  write(directory / "x", second_shard);
  const fs::path link = cached / "snapshots" / "0123" / "model.safetensors";
  fs::create_symlink("../../blobs/abcd", link);
  CHECK(checkpoint::open(link.parent_path()).contains("b"));
  fs::remove(link);
  fs::create_symlink("../../../x", link);
  CHECK_THAT(file_error_of([&] { checkpoint::open(link.parent_path()); }),
             contains_text("is a symbolic link out of the model directory"));
}

TEST_CASE("what is no model is refused by name", "[checkpoint]") {
  const temporary_directory directory;
  CHECK_THAT(file_error_of([&] { checkpoint::open(directory.path()); }),
             contains_text(directory.path().string() + ": holds neither model.safetensors nor "
                                                       "model.safetensors.index.json"));
  CHECK_THAT(file_error_of([&] { checkpoint::open(directory / "gone"); }),
             contains_text("gone: no such directory"));
  fs::create_directory(directory / "model.safetensors");
  CHECK_THAT(file_error_of([&] { checkpoint::open(directory.path()); }),
             contains_text("model.safetensors: is not a regular file"));
  fs::remove(directory / "model.safetensors");
  REQUIRE(::mkfifo((directory / "model.safetensors").c_str(), 0600) == 0);
  CHECK_THAT(file_error_of([&] { checkpoint::open(directory.path()); }),
             contains_text("model.safetensors: is not a regular file"));
  CHECK_THAT(file_error_of([&] { checkpoint::open_file(directory / "model.safetensors"); }),
             contains_text("model.safetensors: is not a regular file"));
  CHECK_THAT(file_error_of([&] { checkpoint::open_file(directory / "gone"); }),
             contains_text("gone: cannot be opened: No such file or directory"));
}

TEST_CASE("missing tensors, other shapes and other element types are refused by name",
          "[checkpoint]") {
  const temporary_directory directory;
  const std::string file = (directory / "model.safetensors").string();
  write(file, second_shard);
  const checkpoint model = checkpoint::open(directory.path());
  CHECK(file_error_of([&] { read_f32(model, "gone", {2}); }) ==
        directory.path().string() + ": tensor gone: missing");
  CHECK(file_error_of([&] {
          read_f32(model, "b", {2, 1});
        }) == file + ": tensor b: shape [2] where [2, 1] is expected");
  CHECK(file_error_of([&] { read_f32(model, "b", {3}); }) ==
        file + ": tensor b: shape [2] where [3] is expected");
  CHECK(file_error_of([&] { read_f32(model, "ids", {1}); }) ==
        file + ": tensor ids: element type I64 where F32, F16 or BF16 is expected");
}

TEST_CASE("weights that are not finite are refused by name", "[checkpoint]") {
  const temporary_directory directory;
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float bad : {infinity, -infinity, std::numeric_limits<float>::quiet_NaN()}) {
    write(directory / "model.safetensors",
          safetensors("{" + entry("w", "F32", "[1,3]", 0, 12) + "}",
                      bytes_of(std::vector<float>{1, 2, bad})));
    const checkpoint model = checkpoint::open(directory.path());
    CHECK_THAT(file_error_of([&] {
                 read_f32(model, "w", {1, 3});
               }),
               contains_text("model.safetensors: tensor w: element 2 is not finite"));
  }
  // An F64 value beyond float.
  write(directory / "model.safetensors", safetensors("{" + entry("w", "F64", "[1]", 0, 8) + "}",
                                                     bytes_of(std::vector<double>{1e300})));
  const checkpoint model = checkpoint::open(directory.path());
  CHECK(ressvd_llm::read_f64(model, "w", {1}) == std::vector<double>{1e300});
  CHECK_THAT(file_error_of([&] { read_f32(model, "w", {1}); }),
             contains_text("tensor w: element 0 is not finite"));
}

TEST_CASE("integers are read as such and never as weights", "[checkpoint]") {
  const temporary_directory directory;
  const std::string file = (directory / "model.safetensors").string();
  // Behind one byte, so that no number is aligned.
  const std::vector<std::int32_t> rows{2, -1, 2'147'483'647};
  write(file, safetensors("{" + entry("pad", "U8", "[1]", 0, 1) + "," +
                              entry("rows", "I32", "[3]", 1, 13) + "," +
                              entry("w", "F32", "[1]", 13, 17) + "}",
                          "x" + bytes_of(rows) + bytes_of(std::vector<float>{1})));
  const checkpoint model = checkpoint::open(directory.path());
  CHECK(ressvd_llm::read_i32(model, "rows", {3}) == rows);
  ressvd_llm::require_i32_shape(model, "rows", {3});
  const auto refusal = [&](const std::string& name, const std::vector<std::int64_t>& shape) {
    return file_error_of([&] { ressvd_llm::read_i32(model, name, shape); });
  };
  CHECK(refusal("rows", {3, 1}) == file + ": tensor rows: shape [3] where [3, 1] is expected");
  CHECK(refusal("w", {1}) == file + ": tensor w: element type F32 where I32 is expected");
  CHECK(refusal("pad", {1}) == file + ": tensor pad: element type U8 where I32 is expected");
  CHECK(refusal("gone", {1}) == directory.path().string() + ": tensor gone: missing");
  const std::string no_weights =
      file + ": tensor rows: element type I32 where F32, F16 or BF16 is expected";
  CHECK(file_error_of([&] { model.at("rows"); }) == no_weights);
  CHECK(file_error_of([&] { read_f32(model, "rows", {3}); }) == no_weights);
  CHECK(file_error_of([&] { ressvd_llm::require_shape(model, "rows", {3}); }) == no_weights);
}

TEST_CASE("matrices that Phi-3 stores as one are read apart", "[checkpoint]") {
  const fs::path original = fs::path(RESSVD_LLM_FIXTURES) / "phi3";
  const checkpoint model = checkpoint::open(original);
  const std::string start = "model.layers.1.";
  CHECK(!model.contains(start + "self_attn.qkv_proj.weight"));
  CHECK(!model.contains(start + "mlp.gate_up_proj.weight"));
  const checkpoint whole = checkpoint::open_file(original / "model.safetensors");
  std::vector<float> rows;
  for (const auto& [name, count] : {std::pair{"q", 32}, std::pair{"k", 16}, std::pair{"v", 16}}) {
    const auto part = read_f32(model, start + "self_attn." + name + "_proj.weight", {count, 32});
    rows.insert(rows.end(), part.begin(), part.end());
  }
  CHECK(rows == read_f32(whole, start + "self_attn.qkv_proj.weight", {64, 32}));
  rows = read_f32(model, start + "mlp.gate_proj.weight", {56, 32});
  const auto up = read_f32(model, start + "mlp.up_proj.weight", {56, 32});
  rows.insert(rows.end(), up.begin(), up.end());
  CHECK(rows == read_f32(whole, start + "mlp.gate_up_proj.weight", {112, 32}));
  CHECK(model.describe(start + "mlp.up_proj.weight").bytes == 56 * 32 * 2);

  // Of other sizes than the config's, and of another family.
  const temporary_directory directory;
  fs::copy_file(original / "model.safetensors", directory / "model.safetensors");
  const std::string config = read(original / "config.json");
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string changed = config;
    changed.replace(changed.find(from), from.size(), to);
    write(directory / "config.json", changed);
  };
  with("\"intermediate_size\": 56", "\"intermediate_size\": 28");
  CHECK_THAT(file_error_of([&] { checkpoint::open(directory.path()); }),
             contains_text("gate_up_proj.weight: shape [112, 32] where 56 rows are expected"));
  with("Phi3ForCausalLM", "LlamaForCausalLM");
  CHECK(checkpoint::open(directory.path()).contains(start + "mlp.gate_up_proj.weight"));
}
