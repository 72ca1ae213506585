// SPDX-License-Identifier: Apache-2.0
#include "io/checkpoint_writer.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <optional>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "io/checkpoint.hpp"
#include "io/output_file.hpp"
#include "llm/io/limits.hpp"
#include "llm/io/temporary.hpp"
#include "support/catch.hpp"

namespace fs = std::filesystem;
using namespace llm_test;
using ressvd_llm::checkpoint;
using ressvd_llm::checkpoint_writer;
using ressvd_llm::dtype;
using ressvd_llm::usage_error;
using ressvd_llm::writer_options;

namespace {

std::vector<float> numbers(std::size_t count, unsigned seed) {
  std::mt19937 random{seed};
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values)
    value = normal(random);
  return values;
}

constexpr int layers = 5;

void add_layer(checkpoint_writer& writer, int layer) {
  const std::string prefix = "layers." + std::to_string(layer);
  const auto seed = static_cast<unsigned>(layer);
  writer.add(prefix + ".odd", {3}, numbers(3, seed + 100), dtype::bf16);
  writer.add(prefix + ".w", {8, 5}, numbers(40, seed), dtype::f32);
}

/// What a run does: layers one by one, each followed by a mark; it may continue an earlier run.
void run(const fs::path& output, const writer_options& options, int stop_after = layers) {
  checkpoint_writer writer(output, {}, options);
  const int first = writer.resumed_state() ? std::stoi(*writer.resumed_state()) : 0;
  for (int layer = first; layer < stop_after; ++layer) {
    add_layer(writer, layer);
    writer.mark(std::to_string(layer + 1));
  }
  if (stop_after < layers) std::raise(SIGKILL);
  writer.add("head", {2}, numbers(2, 77), dtype::f16);
  writer.add_file("config.json", "{}\n");
  writer.commit();
}

std::string usage_error_of(const fs::path& output, const fs::path& input = {}) {
  return message_of<usage_error>([&] { checkpoint_writer(output, input); });
}

std::vector<std::string> names_in(const fs::path& directory) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(directory)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

} // namespace

TEST_CASE("what is written is read back", "[checkpoint_writer]") {
  const temporary_directory directory;
  const fs::path output = directory / "out";
  const std::vector<float> w = numbers(40, 1), v = numbers(7, 2);
  {
    checkpoint_writer writer(output, {});
    writer.add("v", {7}, v, dtype::bf16);
    writer.add("w", {8, 5}, w, dtype::f32);
    writer.add("empty", {0, 4}, {}, dtype::f16);
    CHECK(writer.tensor_bytes() == 7 * 2 + 40 * 4);
    writer.add_file("config.json", "{}");
    write(directory / "tokenizer.model", "pieces");
    writer.copy_file(directory / "tokenizer.model");
    CHECK(!fs::exists(output));
    writer.commit();
  }
  CHECK(names_in(directory.path()) == std::vector<std::string>{"out", "tokenizer.model"});
  CHECK(names_in(output) ==
        std::vector<std::string>{"config.json", "model.safetensors", "tokenizer.model"});
  CHECK(read(output / "config.json") == "{}");
  CHECK(read(output / "tokenizer.model") == "pieces");

  const checkpoint model = checkpoint::open(output);
  CHECK(model.names() == std::vector<std::string>{"empty", "v", "w"});
  CHECK(ressvd_llm::read_f32(model, "w", {8, 5}) == w);
  CHECK(ressvd_llm::read_f32(model, "empty", {0, 4}).empty());
  const std::vector<float> rounded = ressvd_llm::read_f32(model, "v", {7});
  for (std::size_t i = 0; i < v.size(); ++i) {
    // bfloat16 has 8 bits of mantissa.
    CHECK(std::abs(rounded[i] - v[i]) <= std::abs(v[i]) / 256);
  }
  // Wider elements come first, and the header is padded: every tensor is aligned.
  for (const std::string& name : model.names()) {
    CHECK(reinterpret_cast<std::uintptr_t>(model.at(name).data) %
              ressvd_llm::size_of(model.at(name).type) ==
          0);
  }
  // Loaders of PyTorch models ask for this note.
  CHECK(read(output / "model.safetensors").substr(8, 32) ==
        "{\"__metadata__\":{\"format\":\"pt\"},");
}

TEST_CASE("integers are written, resumed, copied and read back", "[checkpoint_writer]") {
  const temporary_directory directory;
  const fs::path output = directory / "out";
  const std::vector<std::int32_t> rows{2, 0, -2'147'483'647, 1}, none;
  const std::vector<float> odd = numbers(1, 3);
  CHECK(!killed_while_writing(RLIM_INFINITY, [&] {
    checkpoint_writer writer(output, {});
    writer.add("odd", {1}, odd, dtype::bf16);
    writer.add("rows", {4}, rows);
    writer.mark("half");
    writer.add("lost", {4}, rows);
    std::raise(SIGKILL);
  }));
  {
    checkpoint_writer writer(output, {}, {.resume = true});
    CHECK(writer.resumed_state() == "half");
    CHECK(writer.tensor_bytes() == 2 + 16);
    writer.add("more", {2, 2}, rows);
    writer.add("none", {0}, none);
    writer.commit();
  }
  const checkpoint model = checkpoint::open(output);
  CHECK(model.names() == std::vector<std::string>{"more", "none", "odd", "rows"});
  CHECK(model.describe("rows").type == "I32");
  CHECK(ressvd_llm::read_i32(model, "rows", {4}) == rows);
  CHECK(ressvd_llm::read_i32(model, "more", {2, 2}) == rows);
  CHECK(ressvd_llm::read_i32(model, "none", {0}).empty());
  CHECK(reinterpret_cast<std::uintptr_t>(model.at_i32("rows").data) % 4 == 0);

  checkpoint_writer writer(directory / "copy", output);
  writer.add(model.at_i32("rows"));
  writer.commit();
  CHECK(ressvd_llm::read_i32(checkpoint::open(directory / "copy"), "rows", {4}) == rows);
}

TEST_CASE("tensors of another checkpoint are copied bit by bit", "[checkpoint_writer]") {
  const temporary_directory directory;
  const std::string data = bytes_of(std::vector<std::uint16_t>{0x7f80, 0x0001, 0xffff, 0x8000});
  fs::create_directory(directory / "in");
  write(directory / "in" / "model.safetensors",
        safetensors("{" + entry("a", "BF16", "[2,2]", 0, 8) + "}", data));
  const checkpoint source = checkpoint::open(directory / "in");
  checkpoint_writer writer(directory / "out", directory / "in");
  writer.add(source.at("a"));
  writer.commit();
  const checkpoint copy = checkpoint::open(directory / "out");
  CHECK(copy.at("a").shape == source.at("a").shape);
  CHECK(std::string(reinterpret_cast<const char*>(copy.at("a").data), 8) == data);
}

TEST_CASE("large models are split into shards", "[checkpoint_writer]") {
  const temporary_directory directory;
  const fs::path output = directory / "out";
  run(output, {.shard_bytes = 340}); // a layer has 166 bytes
  CHECK(names_in(output) ==
        std::vector<std::string>{
            "config.json", "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors",
            "model-00003-of-00003.safetensors", "model.safetensors.index.json"});
  const checkpoint model = checkpoint::open(output);
  CHECK(model.names().size() == 2 * layers + 1);
  for (int layer = 0; layer < layers; ++layer) {
    const std::string name = "layers." + std::to_string(layer) + ".w";
    CHECK(ressvd_llm::read_f32(model, name, {8, 5}) == numbers(40, static_cast<unsigned>(layer)));
  }
  const auto index = nlohmann::json::parse(read(output / "model.safetensors.index.json"));
  CHECK(index["metadata"]["total_size"] == layers * 166 + 4);
  CHECK(index["weight_map"]["head"] == "model-00003-of-00003.safetensors");
  CHECK(index["weight_map"].size() == 2 * layers + 1);
}

TEST_CASE("a tensor larger than a shard is a shard alone", "[checkpoint_writer]") {
  const temporary_directory directory;
  run(directory / "out", {.shard_bytes = 1});
  CHECK(names_in(directory / "out").size() == 2 * layers + 1 + 2);
  CHECK(checkpoint::open(directory / "out").names().size() == 2 * layers + 1);
}

TEST_CASE("an output that cannot be used is refused and left alone", "[checkpoint_writer]") {
  const temporary_directory directory;
  fs::create_directory(directory / "in");
  write(directory / "in" / "config.json", "{}");
  fs::create_directory_symlink("in", directory / "alias");
  for (const fs::path& output : {directory / "in", directory / "in" / "", directory / "alias",
                                 directory / "in" / ".." / "in", directory / "x" / ".." / "in"}) {
    CAPTURE(output);
    CHECK_THAT(usage_error_of(output, directory / "in"),
               contains_text("in: the output directory is the input directory"));
    CHECK_THAT(usage_error_of(directory / "in", output),
               contains_text("in: the output directory is the input directory"));
  }
  CHECK_THAT(usage_error_of(directory / "in"), contains_text("in: exists and is not empty"));
  CHECK_THAT(usage_error_of(directory / "gone" / "out"),
             contains_text("out: its parent directory does not exist"));
  CHECK_THAT(usage_error_of(directory / "in" / "config.json"),
             contains_text("config.json: exists and is not a directory"));
  fs::create_symlink("nothing", directory / "dangling");
  CHECK_THAT(usage_error_of(directory / "dangling"),
             contains_text("dangling: exists and is not a directory"));

  fs::create_directory(directory / "model.partial");
  write(directory / "model.partial" / "config.json", "mine");
  CHECK_THAT(usage_error_of(directory / "model", directory / "model.partial"),
             contains_text("the input lies in"));
  CHECK_THAT(usage_error_of(directory / "model"),
             contains_text("model.partial: exists and is not an interrupted run of this program"));
  CHECK(read(directory / "model.partial" / "config.json") == "mine");
  CHECK(names_in(directory.path()) ==
        std::vector<std::string>{"alias", "dangling", "in", "model.partial"});
  CHECK(names_in(directory / "in") == std::vector<std::string>{"config.json"});
}

TEST_CASE("an empty directory may be the output", "[checkpoint_writer]") {
  const temporary_directory directory;
  fs::create_directory(directory / "out");
  run(directory / "out", {});
  CHECK(checkpoint::open(directory / "out").contains("head"));
}

TEST_CASE("two processes cannot write the same output", "[checkpoint_writer]") {
  const temporary_directory directory;
  checkpoint_writer first(directory / "out", {});
  add_layer(first, 0);
  CHECK_THAT(usage_error_of(directory / "out"),
             contains_text("out.partial: another process is writing it"));
  first.commit();
  CHECK(checkpoint::open(directory / "out").names().size() == 2);
}

TEST_CASE("an error before the first mark leaves nothing behind", "[checkpoint_writer]") {
  const temporary_directory directory;
  const fs::path output = directory / "out";
  SECTION("in the caller") {
    CHECK_THROWS_AS(
        [&] {
          checkpoint_writer writer(output, {});
          add_layer(writer, 0);
          write(writer.scratch() / "basis", "x");
          throw std::runtime_error("no convergence");
        }(),
        std::runtime_error);
  }
  SECTION("on a full disk while tensors arrive") {
    const file_size_limit limit(10'000);
    CHECK_THAT(file_error_of([&] {
                 checkpoint_writer writer(output, {});
                 writer.add("a", {2000}, numbers(2000, 1), dtype::f32);
                 writer.add("b", {2000}, numbers(2000, 1), dtype::f32);
               }),
               contains_text("out.partial/data-0: cannot be written: File too large"));
  }
  SECTION("on a full disk while shards are put together") {
    const file_size_limit limit(8010);
    CHECK_THAT(file_error_of([&] {
                 checkpoint_writer writer(output, {});
                 writer.add("a", {2000}, numbers(2000, 1), dtype::f32);
                 writer.commit();
               }),
               contains_text("model.safetensors: cannot be written: File too large"));
  }
  SECTION("on a full disk while a mark is made") {
    const file_size_limit limit(200);
    CHECK_THAT(file_error_of([&] {
                 checkpoint_writer writer(output, {});
                 add_layer(writer, 0);
                 writer.mark("1");
               }),
               contains_text("journal.json.tmp: cannot be written: File too large"));
  }
  SECTION("on a full disk while a file is copied") {
    write(directory / "tokenizer.model", std::string(500, 'x'));
    const file_size_limit limit(200);
    CHECK_THAT(file_error_of([&] {
                 checkpoint_writer writer(output, {});
                 writer.copy_file(directory / "tokenizer.model");
               }),
               contains_text("tokenizer.model: cannot be written: File too large"));
  }
  fs::remove(directory / "tokenizer.model");
  CHECK(fs::is_empty(directory.path()));
}

TEST_CASE("an error after a mark keeps what can be resumed", "[checkpoint_writer]") {
  const temporary_directory directory;
  const fs::path output = directory / "out", partial = directory / "out.partial";
  run(directory / "whole", {});
  const auto whole = tree(directory / "whole");
  const auto fail_after = [&](int layer, const writer_options& options) {
    checkpoint_writer writer(output, {}, options);
    CHECK(writer.resumable() == writer.resumed_state().has_value());
    for (int i = writer.resumed_state() ? std::stoi(*writer.resumed_state()) : 0; i < layer; ++i) {
      add_layer(writer, i);
      writer.mark(std::to_string(i + 1));
      CHECK(writer.resumable());
    }
    write(writer.scratch() / "basis", "x");
    throw std::runtime_error("no convergence");
  };
  CHECK_THROWS_AS(fail_after(2, {}), std::runtime_error);
  CHECK(tree(partial).contains("journal.json"));
  CHECK(tree(partial).contains("scratch/basis"));
  CHECK_THROWS_AS(fail_after(3, {.resume = true}), std::runtime_error);
  // A disk that is full at the very end, when shards are put together.
  {
    const file_size_limit limit(whole.at("model.safetensors").size() - 1);
    CHECK_THAT(file_error_of([&] { run(output, {.resume = true}); }),
               contains_text("model.safetensors: cannot be written: File too large"));
  }
  CHECK_FALSE(fs::exists(partial / "checkpoint"));
  CHECK_FALSE(fs::exists(output));
  run(output, {.resume = true});
  CHECK(tree(output) == whole);
  CHECK_FALSE(fs::exists(partial));
}

TEST_CASE("values without a finite form in the type are refused", "[checkpoint_writer]") {
  const temporary_directory directory;
  const float infinity = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const struct {
    float value;
    dtype type;
    const char* name;
  } cases[] = {{65520.0f, dtype::f16, "F16"}, {-1e6f, dtype::f16, "F16"},
               {nan, dtype::f16, "F16"},      {3.4e38f, dtype::bf16, "BF16"},
               {infinity, dtype::f32, "F32"}, {-nan, dtype::f32, "F32"}};
  for (const auto& c : cases) {
    CAPTURE(c.value, c.name);
    CHECK_THAT(file_error_of([&] {
                 checkpoint_writer writer(directory / "out", {});
                 writer.add("w", {2}, std::vector{1.0f, c.value}, c.type);
               }),
               contains_text("out: tensor w: element 1 (") &&
                   contains_text(std::string(") has no finite value in ") + c.name));
  }
  CHECK(fs::is_empty(directory.path()));
  checkpoint_writer writer(directory / "out", {});
  writer.add("w", {1}, std::vector{65519.0f}, dtype::f16);
  writer.add("v", {1}, std::vector{3.39e38f}, dtype::bf16);
  writer.commit();
  const checkpoint model = checkpoint::open(directory / "out");
  CHECK(ressvd_llm::read_f32(model, "w", {1}) == std::vector<float>{65504});
  CHECK(ressvd_llm::read_f32(model, "v", {1}).size() == 1);
}

TEST_CASE("mistakes of the caller are refused", "[checkpoint_writer]") {
  const temporary_directory directory;
  checkpoint_writer writer(directory / "out", {});
  add_layer(writer, 0);
  CHECK(message_of<std::invalid_argument>([&] { add_layer(writer, 0); }) ==
        "tensor layers.0.odd is written twice");
  CHECK(message_of<std::invalid_argument>([&] {
          writer.add("x", {3, 2}, numbers(5, 0), dtype::f32);
        }) == "tensor x of shape [3, 2] is given 5 values");
  CHECK(message_of<std::invalid_argument>([&] {
          writer.add("x", {3}, std::vector<std::int32_t>{1});
        }) == "tensor x of shape [3] is given 1 values");
  CHECK(message_of<std::invalid_argument>([&] {
          checkpoint_writer(directory / "none", {}).commit();
        }) == "a checkpoint without tensors");
  CHECK(!fs::exists(directory / "none"));
}

TEST_CASE("a run killed at any layer is resumed to the same bytes", "[checkpoint_writer]") {
  const temporary_directory directory;
  const writer_options fresh{.shard_bytes = 340};
  const writer_options resumed{.shard_bytes = 340, .resume = true};
  run(directory / "whole", fresh);
  const auto whole = tree(directory / "whole");
  const fs::path output = directory / "out";
  for (int stop = 0; stop < layers; ++stop) {
    CAPTURE(stop);
    CHECK(!killed_while_writing(RLIM_INFINITY, [&] { run(output, fresh, stop); }));
    CHECK(!fs::exists(output));
    run(output, resumed);
    CHECK(tree(output) == whole);
    CHECK(!fs::exists(directory / "out.partial"));
    fs::remove_all(output);
  }
}

TEST_CASE("a run killed at any byte is resumed to the same bytes", "[checkpoint_writer]") {
  const temporary_directory directory;
  const writer_options fresh{};
  const writer_options resumed{.resume = true};
  run(directory / "whole", fresh);
  const auto whole = tree(directory / "whole");
  const fs::path output = directory / "out";
  // One data file: it grows to 834 bytes, the journal beyond, the shard to about 1800.
  const auto size = fs::file_size(directory / "whole" / "model.safetensors");
  int killed = 0;
  for (rlim_t limit = 1; limit < size; limit += 41) {
    CAPTURE(limit);
    killed += killed_while_writing(limit, [&] { run(output, fresh); });
    REQUIRE(!fs::exists(output));
    // A second run is killed as well, further on.
    killed_while_writing(limit + 20, [&] { run(output, resumed); });
    if (!fs::exists(output)) run(output, resumed);
    REQUIRE(tree(output) == whole);
    REQUIRE(!fs::exists(directory / "out.partial"));
    fs::remove_all(output);
  }
  CHECK(killed > 20);
}

TEST_CASE("a run starts afresh when it is not asked to resume", "[checkpoint_writer]") {
  const temporary_directory directory;
  const fs::path output = directory / "out";
  killed_while_writing(RLIM_INFINITY, [&] { run(output, {}, 3); });
  CHECK(fs::exists(directory / "out.partial" / "journal.json"));
  checkpoint_writer writer(output, {});
  CHECK(!writer.resumed_state());
  CHECK(writer.tensor_bytes() == 0);
  writer.add("only", {1}, numbers(1, 0), dtype::f32);
  writer.commit();
  CHECK(checkpoint::open(output).names() == std::vector<std::string>{"only"});
}

TEST_CASE("a resumed run that fails at once loses nothing", "[checkpoint_writer]") {
  const temporary_directory directory;
  const fs::path output = directory / "out";
  killed_while_writing(RLIM_INFINITY, [&] { run(output, {}, 3); });
  {
    const checkpoint_writer writer(output, {}, {.resume = true});
    CHECK(writer.resumed_state() == std::optional<std::string>("3"));
    CHECK(writer.tensor_bytes() == 3 * 166);
  }
  run(output, {.resume = true});
  run(directory / "whole", {});
  CHECK(tree(output) == tree(directory / "whole"));
}

TEST_CASE("damaged intermediate files are told, not used", "[checkpoint_writer]") {
  const temporary_directory directory;
  const fs::path output = directory / "out", partial = directory / "out.partial";
  killed_while_writing(RLIM_INFINITY, [&] { run(output, {}, 3); });
  const auto refusal = [&] {
    return file_error_of([&] { checkpoint_writer(output, {}, {.resume = true}); });
  };
  const std::string journal = read(partial / "journal.json");
  write(partial / "journal.json", journal.substr(0, journal.size() / 2));
  CHECK_THAT(refusal(), contains_text("journal.json: is not valid JSON"));
  write(partial / "journal.json", "{}");
  CHECK_THAT(refusal(), contains_text("journal.json: is malformed; remove"));
  auto shifted = nlohmann::json::parse(journal);
  shifted["tensors"][0]["begin"] = ~std::uint64_t{0}; // with its size added, within the file
  write(partial / "journal.json", shifted.dump());
  CHECK_THAT(refusal(), contains_text("journal.json: names a tensor outside its data file"));
  write(partial / "journal.json", journal);
  fs::resize_file(partial / "data-0", 100);
  CHECK_THAT(refusal(), contains_text("data-0: is shorter than the journal says; remove"));
  CHECK(!fs::exists(output));
}

TEST_CASE("what a kill right after the rename leaves is cleared away", "[checkpoint_writer]") {
  const temporary_directory directory;
  run(directory / "out", {});
  fs::create_directory(directory / "out.partial");
  write(directory / "out.partial" / "lock", "");
  write(directory / "out.partial" / "data-0", "x");
  CHECK_THAT(usage_error_of(directory / "out"), contains_text("out: exists and is not empty"));
  CHECK(!fs::exists(directory / "out.partial"));
  fs::create_directory(directory / "out.partial"); // killed between its last two removals
  CHECK_THAT(usage_error_of(directory / "out"), contains_text("out: exists and is not empty"));
  CHECK(!fs::exists(directory / "out.partial"));
  CHECK(checkpoint::open(directory / "out").contains("head"));
}

TEST_CASE("a whole file is replaced or left as it was", "[output_file]") {
  const temporary_directory directory;
  const fs::path file = directory / "report.json";
  ressvd_llm::write_whole_file(file, "one");
  CHECK(read(file) == "one");
  ressvd_llm::write_whole_file(file, "two");
  CHECK(read(file) == "two");
  {
    const file_size_limit limit(100);
    CHECK_THAT(file_error_of([&] { ressvd_llm::write_whole_file(file, std::string(101, 'x')); }),
               contains_text("cannot be written: File too large"));
  }
  CHECK(read(file) == "two");
  CHECK(names_in(directory.path()) == std::vector<std::string>{"report.json"});
  CHECK_THAT(file_error_of([&] { ressvd_llm::write_whole_file(directory / "gone" / "x", "x"); }),
             contains_text("cannot be written: No such file or directory"));
}

TEST_CASE("a file that is no regular one is written, not replaced", "[output_file]") {
  const temporary_directory directory;
  const fs::path pipe = directory / "pipe";
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  const int reader = ::open(pipe.c_str(), O_RDONLY | O_NONBLOCK);
  REQUIRE(reader >= 0);
  ressvd_llm::require_writable(pipe);
  ressvd_llm::write_whole_file(pipe, "text");
  std::array<char, 8> got{};
  CHECK(::read(reader, got.data(), got.size()) == 4);
  CHECK(std::string(got.data()) == "text");
  ::close(reader);
  CHECK(fs::is_fifo(pipe));

  write(directory / "file", "before");
  fs::create_symlink("file", directory / "link");
  ressvd_llm::require_writable(directory / "link");
  ressvd_llm::write_whole_file(directory / "link", "after");
  CHECK(fs::is_symlink(directory / "link"));
  CHECK(read(directory / "file") == "after");
}

TEST_CASE("whether a file can be written is found without writing it", "[output_file]") {
  const temporary_directory directory;
  ressvd_llm::require_writable(directory / "report.json");
  CHECK(fs::is_empty(directory.path()));
  write(directory / "report.json", "before");
  ressvd_llm::require_writable(directory / "report.json");
  CHECK(read(directory / "report.json") == "before");
  CHECK_THAT(file_error_of([&] { ressvd_llm::require_writable(directory / "x" / "report.json"); }),
             contains_text("cannot be written: No such file or directory"));
  fs::create_directory(directory / "folder");
  CHECK_THAT(file_error_of([&] { ressvd_llm::require_writable(directory / "folder"); }),
             contains_text("folder: cannot be written: Is a directory"));
}

TEST_CASE("a device without space is told as such", "[output_file]") {
  if (!fs::exists("/dev/full")) return;
  ressvd_llm::output_file full("/dev/full");
  CHECK(file_error_of([&] { full.write("x"); }) ==
        "/dev/full: cannot be written: No space left on device");
}
