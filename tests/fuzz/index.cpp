// SPDX-License-Identifier: Apache-2.0
//
// Any text as the index of a sharded checkpoint: refused, or shards that all lie inside the model's
// directory. The directory holds a file, a directory and links.
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <system_error>

#include <stdlib.h>

#include "fuzz.hpp"
#include "io/error.hpp"
#include "io/paths.hpp"
#include "io/safetensors.hpp"

namespace {

namespace fs = std::filesystem;

// TMP/model, with TMP/outside beside it; both disappear at the end of the run.
class model_directory {
 public:
  model_directory() {
    std::string name = (fs::temp_directory_path() / "ressvd-fuzz-XXXXXX").string();
    fuzz::require(::mkdtemp(name.data()) != nullptr);
    parent_ = fs::canonical(name);
    fs::create_directories(path() / "directory");
    std::ofstream(parent_ / "outside") << "x";
    std::ofstream(path() / "a.safetensors") << "x";
    fs::create_symlink("a.safetensors", path() / "link");
    fs::create_symlink("../outside", path() / "leaving");
  }
  model_directory(const model_directory&) = delete;
  model_directory& operator=(const model_directory&) = delete;
  ~model_directory() {
    std::error_code ignored;
    fs::remove_all(parent_, ignored);
  }

  fs::path path() const { return parent_ / "model"; }

 private:
  fs::path parent_;
};

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const model_directory directory;
  static const fs::path model = directory.path();
  try {
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    for (const auto& [shard, names] : ressvd_llm::read_index("index.json", text)) {
      fuzz::require(!names.empty());
      const fs::path target = fs::canonical(ressvd_llm::file_inside(model, shard));
      fuzz::require(target.parent_path() == model && fs::is_regular_file(target));
    }
  } catch (const ressvd_llm::file_error& error) {
    fuzz::require_message(error);
  }
  return 0;
}
