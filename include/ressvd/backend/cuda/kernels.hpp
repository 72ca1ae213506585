// SPDX-License-Identifier: Apache-2.0
//
// Device kernels: taken from the cache of compiled code (backend/cuda/kernel_cache.hpp) when a
// context first uses them, loaded and launched through the driver.
//
// The driver's functions are looked up at run time, so a program does not link libcuda and starts
// on a machine without a driver. (The run-time library has functions of its own to load compiled
// code, but only since CUDA 12.8.)
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "ressvd/backend/cuda/kernel_cache.hpp"
#include "ressvd/core/scalar.hpp"
#include "ressvd/core/types.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {
namespace cuda {

/// The name of a type in the kernels' source.
template <storage_scalar T>
constexpr const char* kernel_type() {
  if constexpr (std::is_same_v<T, float>) {
    return "float";
  } else if constexpr (std::is_same_v<T, double>) {
    return "double";
  } else if constexpr (std::is_same_v<T, half>) {
    return "ressvd::half";
  } else {
    return "ressvd::bfloat16";
  }
}

/// "ressvd::kernel<argument, argument>"
inline std::string kernel_name(const char* kernel, std::initializer_list<const char*> arguments) {
  std::string name = std::string("ressvd::") + kernel + '<';
  for (const char* argument : arguments) {
    if (name.back() != '<') name += ',';
    name += argument;
  }
  return name + '>';
}

/// Threads of a launch.
struct launch_shape {
  dim3 grid;
  dim3 block;
};

inline unsigned blocks_for(index_t count, index_t block, index_t most) {
  return static_cast<unsigned>((std::min)((count + block - 1) / block, most));
}

/// One thread for each element, as far as the grid goes; kernels stride over the rest.
inline launch_shape over(index_t rows, index_t cols) {
  constexpr index_t most_down = 0x7fffffff;
  constexpr index_t most_across = 65535;
  if (cols == 1) return {dim3(blocks_for(rows, 256, most_down)), dim3(256)};
  return {dim3(blocks_for(rows, 32, most_down), blocks_for(cols, 8, most_across)), dim3(32, 8)};
}
/// The same with at most 1024 blocks, each of which leaves one number.
inline launch_shape over_for_sum(index_t rows, index_t cols) {
  if (cols == 1) return {dim3(blocks_for(rows, 256, 1024)), dim3(256)};
  return {dim3(blocks_for(rows, 32, 32), blocks_for(cols, 8, 32)), dim3(32, 8)};
}
/// A block of 32 × 8 threads for each tile of 32 × 32 elements.
inline launch_shape over_tiles(index_t rows, index_t cols) {
  return {dim3(blocks_for(rows, 32, 0x7fffffff), blocks_for(cols, 32, 65535)), dim3(32, 8)};
}
/// A block of 32 × 32 threads for each 32 rows.
inline launch_shape over_rows(index_t rows) {
  return {dim3(blocks_for(rows, 32, 0x7fffffff)), dim3(32, 32)};
}

class cuda_kernels {
 public:
  /// Compiled code is also kept in this folder, unless it is empty.
  explicit cuda_kernels(std::string folder) : folder_(std::move(folder)) {}
  cuda_kernels(const cuda_kernels&) = delete;
  cuda_kernels& operator=(const cuda_kernels&) = delete;
  ~cuda_kernels() {
    for (const auto& [name, k] : loaded_)
      driver_.unload(k.loaded);
  }

  /// Launches a kernel of the source, or of what a caller adds to it; no two may have one name.
  /// The arguments must have the types of its parameters.
  template <class... Args>
  void launch(cudaStream_t stream, launch_shape shape, const std::string& name,
              std::string_view addition, Args... args) {
    static_assert(((std::is_pointer_v<Args> || compute_scalar<Args> ||
                    std::is_same_v<Args, index_t> || std::is_same_v<Args, std::uint64_t>)&&...),
                  "kernels take pointers, scalars, index_t and std::uint64_t");
    void* arguments[] = {&args...};
    const auto kernel =
        reinterpret_cast<CUfunction>(find(name, addition)); // as cuLaunchKernel documents it
    const auto start = [&] {
      return driver_.launch(kernel, shape.grid.x, shape.grid.y, 1, shape.block.x, shape.block.y, 1,
                            0, stream, arguments, nullptr);
    };
    CUresult status = start();
    if (status == CUDA_ERROR_INVALID_CONTEXT) {
      // A thread's first use of the device, on a default stream (others name their context).
      check(cudaFree(nullptr)); // makes the device's context current in this thread
      status = start();
    }
    check_driver(status, name);
  }

 private:
  struct driver {
    decltype(&cuLibraryLoadData) load = nullptr;
    decltype(&cuLibraryGetKernel) get_kernel = nullptr;
    decltype(&cuLibraryUnload) unload = nullptr;
    decltype(&cuLaunchKernel) launch = nullptr;
    decltype(&cuGetErrorName) error_name = nullptr;
  };
  struct loaded_kernel {
    CUlibrary loaded;
    CUkernel kernel;
  };

  CUkernel find(const std::string& name, std::string_view addition) {
    if (const auto k = loaded_.find(name); k != loaded_.end()) return k->second.kernel;
    return load(name, addition);
  }

  CUkernel load(const std::string& name, std::string_view addition) {
    if (driver_.launch == nullptr) connect();
    const compiled_kernel& compiled =
        compiled_kernels().get(name, target_, exact_, folder_, addition);
    loaded_kernel k{};
    check_driver(
        driver_.load(&k.loaded, compiled.code.data(), nullptr, nullptr, 0, nullptr, nullptr, 0),
        name);
    const CUresult found = driver_.get_kernel(&k.kernel, k.loaded, compiled.symbol.c_str());
    if (found != CUDA_SUCCESS) driver_.unload(k.loaded);
    check_driver(found, name);
    loaded_.emplace(name, k);
    return k.kernel;
  }

  /// Finds the driver's functions, and what to compile for on the current device.
  void connect() {
    int device = 0;
    int major = 0;
    int minor = 0;
    check(cudaGetDevice(&device));
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
    const int capability = 10 * major + minor;
    for (const int target : kernel_targets()) {
      if (target <= capability) target_ = target;
    }
    require<backend_error>(target_ > 0, "NVRTC does not compile for this device's capability ",
                           major, ".", minor);
    exact_ = target_ == capability;

    driver d;
    entry_point("cuLibraryLoadData", d.load);
    entry_point("cuLibraryGetKernel", d.get_kernel);
    entry_point("cuLibraryUnload", d.unload);
    entry_point("cuGetErrorName", d.error_name);
    entry_point("cuLaunchKernel", d.launch);
    driver_ = d;
  }

  template <class Function>
  static void entry_point(const char* symbol, Function& function) {
    void* address = nullptr;
#if CUDART_VERSION >= 12050
    check(cudaGetDriverEntryPointByVersion(symbol, &address, 12000, cudaEnableDefault, nullptr));
#else
    check(cudaGetDriverEntryPoint(symbol, &address, cudaEnableDefault));
#endif
    require<backend_error>(address != nullptr, "the CUDA driver has no ", symbol,
                           "; a driver of CUDA 12 or later is needed");
    function = reinterpret_cast<Function>(address);
  }

  void check_driver(CUresult status, const std::string& kernel) {
    if (status == CUDA_SUCCESS) return;
    const char* name = nullptr;
    driver_.error_name(status, &name);
    fail<backend_error>("the CUDA driver returned ", name == nullptr ? "an unknown error" : name,
                        " for the kernel ", kernel);
  }

  std::string folder_;
  driver driver_;
  int target_ = 0;
  bool exact_ = false;
  std::map<std::string, loaded_kernel> loaded_;
};

} // namespace cuda
} // namespace detail
} // namespace v0
} // namespace ressvd
