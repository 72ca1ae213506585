// SPDX-License-Identifier: Apache-2.0
//
// NVRTC accepts every kernel of the CUDA backend, for every GPU it knows. No device is needed.
#include "ressvd/backend/cuda/kernels.hpp"

#include <algorithm>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "support/catch.hpp"

namespace {

namespace cuda = ressvd::detail::cuda;

std::vector<std::string> every_kernel() {
  const std::vector<const char*> computed{"float", "double"};
  const std::vector<const char*> stored{"float", "double", "ressvd::half", "ressvd::bfloat16"};
  std::vector<std::string> names;
  const auto add = [&](const char* kernel, std::initializer_list<const char*> arguments) {
    names.push_back(cuda::kernel_name(kernel, arguments));
  };
  for (const char* u : stored) {
    add("max_abs", {u});
    for (const char* t : computed) {
      for (const char* kernel : {"copy", "transpose"}) {
        add(kernel, {u, t});
        add(kernel, {t, u});
      }
      add("scatter_rows", {t, u});
      add("add_row_sums", {u, t, "false"});
    }
  }
  for (const char* t : computed) {
    for (const char* kernel :
         {"mirror_lower", "copy_upper", "fill", "scale", "scale_rows", "scale_cols",
          "shift_diagonal", "diagonal", "dot", "random_normal", "unit_lower", "adam"})
      add(kernel, {t});
    add("add", {t, t});
    add("add_row_sums", {t, "double", "true"});
  }
  add("add", {"float", "double"});
  add("few_products", {"float", "float", "float", "1", "4"});
  add("few_products", {"ressvd::half", "float", "ressvd::half", "2", "8"});
  add("few_products", {"ressvd::bfloat16", "ressvd::bfloat16", "float", "8", "8"});
  add("few_products", {"ressvd::bfloat16", "ressvd::half", "float", "3", "1"});
  return names;
}

} // namespace

TEST_CASE("every kernel compiles", "[cuda]") {
  const int target = cuda::kernel_targets().back();
  for (const std::string& name : every_kernel()) {
    INFO(name);
    const cuda::compiled_kernel k = cuda::compile_kernel(name, target, false);
    CHECK(k.code.size() > 1000);
    // The mangled name holds the plain one: of the template asked for, in our namespace.
    const std::string plain = name.substr(8, name.find('<') - 8);
    CHECK(k.symbol.find("6ressvd" + std::to_string(plain.size()) + plain) != std::string::npos);
  }
}

TEST_CASE("kernels compile for every GPU that NVRTC knows", "[cuda]") {
  const std::vector<int> targets = cuda::kernel_targets();
  REQUIRE(!targets.empty());
  CHECK(std::is_sorted(targets.begin(), targets.end()));
  for (const int target : targets) {
    for (const char* name : {"ressvd::transpose<ressvd::half,float>",
                             "ressvd::add_row_sums<ressvd::bfloat16,double,false>",
                             "ressvd::few_products<ressvd::half,float,float,1,8>"}) {
      INFO(name << " for " << target);
      CHECK(cuda::compile_kernel(name, target, true).code.size() > 1000);
      const cuda::compiled_kernel portable = cuda::compile_kernel(name, target, false);
      const std::string ptx(portable.code.begin(), portable.code.end());
      CHECK(ptx.find(".target sm_" + std::to_string(target)) != std::string::npos);
      CHECK(ptx.find(portable.symbol) != std::string::npos);
    }
  }
}

TEST_CASE("a kernel that does not compile says why", "[cuda]") {
  CHECK_THROWS_WITH(cuda::compile_kernel("ressvd::fill<nothing>", 90, true),
                    contains_text("ressvd::fill<nothing>") && contains_text("nothing"));
}

TEST_CASE("a kernel that is kept in a folder is the one that was compiled", "[cuda]") {
  const auto folder = std::filesystem::temp_directory_path() /
                      ressvd::detail::text("ressvd_kernels_", std::random_device{}());
  const std::string name = "ressvd::transpose<ressvd::half,float>";
  cuda::kernel_cache first, second;
  const cuda::compiled_kernel& compiled = first.get(name, 90, true, folder.string());
  const auto key = cuda::kernel_key(name, 90, true);
  CHECK(key.find("ressvd::transpose") != std::string::npos);
  const auto kept = cuda::read_kernel(cuda::kernel_file(folder.string(), key), key);
  REQUIRE(kept.has_value());
  for (const cuda::compiled_kernel& k : {*kept, second.get(name, 90, true, folder.string())}) {
    CHECK(k.symbol == compiled.symbol);
    CHECK(k.code == compiled.code);
  }
  std::filesystem::remove_all(folder);
}
