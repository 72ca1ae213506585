// SPDX-License-Identifier: Apache-2.0
//
// NVRTC accepts the kernels of the program's forward pass. No device is needed.
#include "model/forward_kernels.hpp"

#include <string>
#include <vector>

#include "ressvd/backend/cuda/kernels.hpp"
#include "support/catch.hpp"

namespace {

namespace cuda = ressvd::detail::cuda;

std::vector<std::string> forward_kernel_names() {
  std::vector<std::string> names;
  for (const char* kernel :
       {"norm<float,true>", "add_bias<float>", "merge_rows<true>", "merge_rows<false>",
        "cap_values<float>", "next_token_losses<float>", "kl_divergences<float>", "compare<float>"})
    names.push_back(kernel);
  for (const std::string s : {"float", "ressvd::half", "ressvd::bfloat16"}) {
    for (const std::string kernel : {"embed", "to_stored", "rotate", "softmax"})
      names.push_back(kernel + '<' + s + '>');
    names.push_back("norm<" + s + ",false>");
    for (const char* kind : {"0", "1", "2", "3"})
      names.push_back("activate<" + s + ',' + kind + '>');
  }
  return names;
}

} // namespace

TEST_CASE("the forward pass's kernels compile for the oldest and the newest GPU", "[cuda]") {
  const std::vector<int> targets = cuda::kernel_targets();
  for (const int target : {targets.front(), targets.back()}) {
    for (const std::string& name : forward_kernel_names()) {
      INFO(name << " for " << target);
      const cuda::compiled_kernel k =
          cuda::compile_kernel("ressvd_llm::" + name, target, true, ressvd_llm::forward_kernels);
      CHECK(k.code.size() > 1000);
      CHECK(k.symbol.find("10ressvd_llm") != std::string::npos);
    }
  }
}

TEST_CASE("kernels that are added are kept apart from others of their name", "[cuda]") {
  const std::string name = "ressvd::fill<float>";
  CHECK(cuda::kernel_key(name, 90, true) != cuda::kernel_key(name, 90, true, "namespace x {}"));
  CHECK(cuda::kernel_key(name, 90, true, "a") != cuda::kernel_key(name, 90, true, "b"));
}
