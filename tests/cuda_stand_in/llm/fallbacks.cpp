// SPDX-License-Identifier: Apache-2.0
//
// ressvd-llm --backend cuda where a routine fails.
#include <filesystem>
#include <string>

#include "compress/compress.hpp"
#include "cuda_stand_in/stand_in.hpp"
#include "llm/io/temporary.hpp"
#include "support/catch.hpp"

namespace {

using stand_in::control;
using stand_in::fault;

TEST_CASE("the program's report names the decompositions that another routine made",
          "[cuda][program]") {
  const llm_test::temporary_directory directory;
  ressvd_llm::compress_options options;
  options.model = std::filesystem::path(RESSVD_LLM_FIXTURES) / "llama";
  options.output = directory.path() / "output";
  options.backend = ressvd_llm::backend_choice::cuda;
  options.device.kernel_cache = directory.path() / "kernels";
  options.method = "svd";
  options.allocation = ressvd_llm::allocation::uniform;
  options.ratio = 0.4;
  options.samples = 2;
  options.seqlen = 8;
  options.heldout_samples = 0;
  control.syevd = fault::unconverged;
  const ressvd_llm::compression_report report = ressvd_llm::compress(options);
  control.syevd = fault::none;
  CHECK_FALSE(std::filesystem::is_empty(options.device.kernel_cache));
  CHECK(report.fallbacks.count == 1); // the fault is that of one call
  CHECK_THAT(report.fallbacks.last, contains_text(" by syevj, after syevd: it did not converge"));
}

} // namespace
