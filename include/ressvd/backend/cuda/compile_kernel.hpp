// SPDX-License-Identifier: Apache-2.0
//
// One kernel of the source, compiled by NVRTC: about 0.1 s. No device is needed.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "ressvd/backend/cuda/error.hpp"
#include "ressvd/backend/cuda/kernel_source.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {
namespace cuda {

struct compiled_kernel {
  std::string symbol; ///< the kernel's mangled name
  std::vector<char> code;
};

inline std::vector<std::string> compiler_options(int target, bool exact) {
  return {text("--gpu-architecture=", exact ? "sm_" : "compute_", target), "--std=c++17",
          "--device-as-default-execution-space"};
}

/// Compiles one kernel for compute capability `target` (90 for 9.0): to machine code when `exact`,
/// else to PTX, which the driver compiles for any device of that capability or a later one.
/// `addition`: text behind the source, with kernels of the caller's.
inline compiled_kernel compile_kernel(const std::string& name, int target, bool exact,
                                      std::string_view addition = {}) {
  nvrtcProgram program = nullptr;
  const std::string source = std::string(kernel_source).append(addition);
  check(nvrtcCreateProgram(&program, source.c_str(), "ressvd_kernels.cu", 0, nullptr, nullptr));
  struct destroy {
    nvrtcProgram& p;
    ~destroy() { nvrtcDestroyProgram(&p); }
  } const guard{program};

  check(nvrtcAddNameExpression(program, name.c_str()));
  const std::vector<std::string> options = compiler_options(target, exact);
  std::vector<const char*> words;
  for (const std::string& option : options)
    words.push_back(option.c_str());
  if (const nvrtcResult status =
          nvrtcCompileProgram(program, static_cast<int>(words.size()), words.data());
      status != NVRTC_SUCCESS) {
    std::size_t size = 0;
    check(nvrtcGetProgramLogSize(program, &size));
    std::string log(size, '\0');
    check(nvrtcGetProgramLog(program, log.data()));
    fail<backend_error>("NVRTC could not compile ", name, " with ", words.front(), " (",
                        nvrtcGetErrorString(status), "): ", log.c_str());
  }
  compiled_kernel result;
  const char* symbol = nullptr;
  check(nvrtcGetLoweredName(program, name.c_str(), &symbol));
  result.symbol = symbol;
  std::size_t size = 0;
  check(exact ? nvrtcGetCUBINSize(program, &size) : nvrtcGetPTXSize(program, &size));
  result.code.resize(size);
  check(exact ? nvrtcGetCUBIN(program, result.code.data())
              : nvrtcGetPTX(program, result.code.data()));
  return result;
}

/// The compute capabilities that this NVRTC compiles for, ascending.
inline std::vector<int> kernel_targets() {
  int count = 0;
  check(nvrtcGetNumSupportedArchs(&count));
  std::vector<int> targets(static_cast<std::size_t>(count));
  check(nvrtcGetSupportedArchs(targets.data()));
  return targets;
}

} // namespace cuda
} // namespace detail
} // namespace v0
} // namespace ressvd
