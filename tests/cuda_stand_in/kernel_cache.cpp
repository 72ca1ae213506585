// SPDX-License-Identifier: Apache-2.0
//
// No kernel is compiled twice: not in a process, and where a folder is named not on a machine.
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <utility>

#include "cuda_stand_in/stand_in.hpp"
#include "ressvd/cuda.hpp"
#include "support/catch.hpp"

namespace {

namespace cuda = ressvd::detail::cuda;
using stand_in::control;

const std::string fill = "ressvd::fill<float>";

/// An empty folder's name for one test; the folder is not there yet.
class folder {
 public:
  folder()
      : path_(std::filesystem::temp_directory_path() /
              ressvd::detail::text("ressvd_kernels_", std::random_device{}())) {}
  ~folder() { std::filesystem::remove_all(path_); }
  folder(const folder&) = delete;
  folder& operator=(const folder&) = delete;

  std::string name() const { return path_.string(); }
  long files() const { return std::distance(std::filesystem::directory_iterator(path_), {}); }
  std::filesystem::path file(int target) const {
    return cuda::kernel_file(name(), cuda::kernel_key(fill, target, true));
  }

 private:
  std::filesystem::path path_;
};

std::string contents(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

/// Asks for the kernel as a new process would; the compilations that this took.
long compilations(const std::string& folder, int target = 90) {
  const long before = control.compilations;
  cuda::kernel_cache fresh;
  const cuda::compiled_kernel kernel = fresh.get(fill, target, true, folder);
  CHECK(kernel.symbol == "kernel_entry");
  CHECK(std::string(kernel.code.data()).find(".so") != std::string::npos);
  return control.compilations - before;
}

void use_kernels(const std::string& folder = {}) {
  ressvd::cuda_backend<float> be(ressvd::cuda_context::owning({.kernel_cache = folder}));
  auto a = be.allocate(5, 4);
  be.fill(a, 3);
  CHECK(be.max_abs(std::as_const(a).view()) == 3);
}

} // namespace

TEST_CASE("a second context compiles nothing", "[cuda]") {
  use_kernels();
  const long before = control.compilations;
  use_kernels();
  CHECK(control.compilations == before);
}

TEST_CASE("a kernel is compiled once for all processes that share a folder", "[cuda]") {
  const folder kept;
  CHECK(compilations(kept.name()) == 1);
  CHECK(compilations(kept.name()) == 0);
  CHECK(compilations(kept.name(), 75) == 1); // for another device
  CHECK(compilations(kept.name(), 75) == 0);
  CHECK(compilations({}) == 1);
  CHECK(kept.files() == 2);
}

TEST_CASE("a context leaves its kernels in the folder, also those that were compiled before",
          "[cuda]") {
  const folder kept;
  use_kernels();
  use_kernels(kept.name());
  CHECK(kept.files() == 2);
  CHECK(compilations(kept.name()) == 0);
}

TEST_CASE("a damaged file is compiled anew and replaced", "[cuda]") {
  const folder kept;
  compilations(kept.name());
  const auto file = kept.file(90);
  const std::string whole = contents(file);
  const auto with = [&](const std::string& text) {
    std::ofstream(file, std::ios::binary) << text;
    CHECK(compilations(kept.name()) == 1);
    CHECK(contents(file) == whole);
  };
  for (std::size_t i = 0; i < whole.size(); i += 7) {
    INFO("byte " << i);
    std::string changed = whole;
    changed[i] = static_cast<char>(changed[i] ^ 1);
    with(changed);
  }
  with("");
  with(whole.substr(0, whole.size() - 1));
  with(whole + " ");
  // Another kernel's file under this name.
  compilations(kept.name(), 75);
  with(contents(kept.file(75)));
}

TEST_CASE("a folder that cannot be written costs time alone", "[cuda]") {
  const folder kept;
  compilations(kept.name());
  const std::string below_a_file = (kept.file(90) / "kernels").string();
  CHECK(compilations(below_a_file) == 1);
  use_kernels(below_a_file);
  CHECK(kept.files() == 1);
}
