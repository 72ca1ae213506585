// SPDX-License-Identifier: Apache-2.0
//
// ressvd-llm compress with the whole model on a card, against the same on the CPU.
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "compress/compress.hpp"
#include "cuda_stand_in/stand_in.hpp"
#include "llm/compress/short_compression.hpp"
#include "llm/io/temporary.hpp"
#include "support/catch.hpp"

namespace {

using namespace ressvd_llm;

compress_options short_run(const std::filesystem::path& output, backend_choice backend) {
  compress_options o =
      testing::short_compression(std::filesystem::path(RESSVD_LLM_FIXTURES) / "llama", output);
  o.backend = backend;
  o.samples = 6; // the stand-in is slow
  o.search_samples = 3;
  o.heldout_samples = 3;
  o.probe_samples = 2;
  return o;
}

std::vector<std::int64_t> ranks_of(const compression_report& report) {
  std::vector<std::int64_t> ranks;
  for (const matrix_report& m : report.matrices)
    ranks.push_back(m.factors ? m.factors->rank : 0);
  return ranks;
}

TEST_CASE("a model that is compressed on a card is the one that the CPU makes", "[cuda][program]") {
  const llm_test::temporary_directory directory;
  struct choice {
    const char* name;
    const char* method;
    allocation ranks;
    bool retruncate;
  };
  for (const choice& c : {choice{"uniform", "svd-llm", allocation::uniform, false},
                          choice{"last layers", "ressvd", allocation::last_layers, false},
                          choice{"importance", "adasvd", allocation::importance, false},
                          choice{"sensitivity", "svd-llm", allocation::sensitivity, false},
                          choice{"fisher", "kfac-svd", allocation::fisher, true}}) {
    CAPTURE(c.name);
    const auto run = [&](backend_choice backend, const char* on) {
      compress_options o = short_run(directory / (std::string(c.name) + on), backend);
      o.method = c.method;
      o.allocation = c.ranks;
      o.retruncate = c.retruncate;
      if (c.ranks == allocation::last_layers) o.ratio = 0.2;
      return compress(o);
    };
    const compression_report expected = run(backend_choice::cpu, "cpu");
    const std::size_t before = stand_in::bytes_in_use();
    const compression_report found = run(backend_choice::cuda, "cuda");
    CHECK(stand_in::bytes_in_use() == before);
    CHECK(ranks_of(found) == ranks_of(expected));
    CHECK(found.achieved_ratio == expected.achieved_ratio);
    REQUIRE(found.heldout.has_value());
    CHECK(found.heldout->original_perplexity ==
          Approx(expected.heldout->original_perplexity).epsilon(1e-4));
    CHECK(found.heldout->compressed_perplexity ==
          Approx(expected.heldout->compressed_perplexity).epsilon(2e-3));
    CHECK(found.memory.card_peak > 0);
    CHECK(found.memory.card_peak <= found.memory.card_estimate);
  }
}

TEST_CASE("a card without the memory for a run says so and leaves no output", "[cuda][program]") {
  const llm_test::temporary_directory directory;
  compress_options o = short_run(directory / "output", backend_choice::cuda);
  o.device.memory_limit = 30'000;
  CHECK_THROWS_WITH(compress(o), contains_text("bytes of device memory"));
  CHECK_FALSE(std::filesystem::exists(o.output));
  // What is done is kept, and the CPU goes on from there.
  o.backend = backend_choice::cpu;
  o.resume = true;
  CHECK(compress(o).heldout.has_value());
}

} // namespace
