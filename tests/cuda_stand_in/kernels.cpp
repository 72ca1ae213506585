// SPDX-License-Identifier: Apache-2.0
//
// NVRTC and the driver: a kernel is compiled into a shared library by the compiler of the tests and
// kept in the build folder under a name made from its text.
#include <cuda.h>
#include <dlfcn.h>
#include <nvrtc.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <string>

#include "cuda_stand_in/launch.hpp"
#include "cuda_stand_in/stand_in.hpp"

struct _nvrtcProgram {
  std::string source;
  std::string name;
  std::string shared_object; ///< path of what was compiled: the "machine code"
  std::string log;
};

namespace stand_in {
namespace {

/// The two places where the kernels speak PTX.
std::string without_ptx(std::string source) {
  const auto replace = [&](const std::string& from, const std::string& to) {
    const auto found = source.find(from);
    if (found == std::string::npos) misuse("the kernels' source has no %s", from.c_str());
    source.replace(found, from.size(), to);
  };
  replace(R"(asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(x.bits));)", "f = half_to_float(x.bits);");
  replace(R"(asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h.bits) : "f"(x));)",
          "h.bits = float_to_half(x);");
  return source;
}

std::string read_file(const std::string& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}

nvrtcResult compile(_nvrtcProgram& program) {
  const std::string text = "#include \"threads.hpp\"\n" + // precompiled, see tests/CMakeLists.txt
                           without_ptx(program.source) +
                           "extern \"C\" void kernel_entry(void** arguments, stand_in::launch& l) "
                           "{\n  stand_in::enter<&" +
                           program.name + ">(arguments, l);\n}\n";
  const std::string base = STAND_IN_FOLDER "/kernel_" +
                           std::to_string(std::hash<std::string>{}(
                               text + read_file(STAND_IN_SOURCES "/cuda_stand_in/threads.hpp")));
  program.shared_object = base + ".so";
  if (access(program.shared_object.c_str(), R_OK) == 0) return NVRTC_SUCCESS;
  // Several tests run at once: each writes files of its own, the last step is atomic.
  const std::string mine = base + "_" + std::to_string(getpid());
  std::ofstream(mine + ".cpp") << text;
  const std::string command = STAND_IN_COMMAND " -shared -I" STAND_IN_FOLDER " " + mine +
                              ".cpp -o " + mine + ".so 2> " + mine + ".log";
  if (std::system(command.c_str()) != 0) {
    program.log = read_file(mine + ".log");
    return NVRTC_ERROR_COMPILATION;
  }
  std::rename((mine + ".so").c_str(), program.shared_object.c_str());
  std::remove((mine + ".cpp").c_str());
  std::remove((mine + ".log").c_str());
  return NVRTC_SUCCESS;
}

// The driver's functions, found by name.

CUresult load(CUlibrary* library, const void* code, CUjit_option*, void**, unsigned,
              CUlibraryOption*, void**, unsigned) {
  void* const opened = dlopen(static_cast<const char*>(code), RTLD_NOW | RTLD_LOCAL);
  if (opened == nullptr) misuse("%s", dlerror());
  *library = static_cast<CUlibrary>(opened);
  return CUDA_SUCCESS;
}
CUresult get_kernel(CUkernel* kernel, CUlibrary library, const char* name) {
  *kernel = static_cast<CUkernel>(dlsym(library, name));
  return *kernel == nullptr ? CUDA_ERROR_NOT_FOUND : CUDA_SUCCESS;
}
CUresult unload(CUlibrary) {
  return CUDA_SUCCESS; // stays: queued work may still run it
}
CUresult error_name(CUresult, const char** name) {
  *name = "CUDA_ERROR";
  return CUDA_SUCCESS;
}

CUresult launch_kernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                       unsigned block_x, unsigned block_y, unsigned block_z, unsigned,
                       CUstream stream, void** arguments, void**) {
  if (grid_x == 0 || grid_y == 0 || grid_z != 1 || grid_x > 0x7fffffff || grid_y > 65535 ||
      block_z != 1 || block_x * block_y == 0 || block_x * block_y > 1024) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  const auto now = std::make_shared<launch>();
  now->grid[0] = grid_x;
  now->grid[1] = grid_y;
  now->block[0] = block_x;
  now->block[1] = block_y;
  now->translate = [](const void* address) -> void* {
    return device(address, 1, "a kernel's argument");
  };
  reinterpret_cast<entry*>(function)(arguments, *now);
  enqueue(stream, [now] { now->run(*now); });
  return CUDA_SUCCESS;
}

} // namespace
} // namespace stand_in

using namespace stand_in;

extern "C" {

const char* nvrtcGetErrorString(nvrtcResult) {
  return "NVRTC_ERROR";
}
nvrtcResult nvrtcVersion(int* major, int* minor) {
  *major = 13;
  *minor = 0;
  return NVRTC_SUCCESS;
}
nvrtcResult nvrtcGetNumSupportedArchs(int* count) {
  *count = 3;
  return NVRTC_SUCCESS;
}
nvrtcResult nvrtcGetSupportedArchs(int* targets) {
  targets[0] = 75;
  targets[1] = 90;
  targets[2] = 120;
  return NVRTC_SUCCESS;
}
nvrtcResult nvrtcCreateProgram(nvrtcProgram* program, const char* source, const char*, int,
                               const char* const*, const char* const*) {
  *program = new _nvrtcProgram{source, "", "", ""};
  return NVRTC_SUCCESS;
}
nvrtcResult nvrtcDestroyProgram(nvrtcProgram* program) {
  delete *program;
  *program = nullptr;
  return NVRTC_SUCCESS;
}
nvrtcResult nvrtcAddNameExpression(nvrtcProgram program, const char* name) {
  program->name = name;
  return NVRTC_SUCCESS;
}
nvrtcResult nvrtcCompileProgram(nvrtcProgram program, int, const char* const*) {
  ++control.compilations;
  return compile(*program);
}
nvrtcResult nvrtcGetLoweredName(nvrtcProgram, const char*, const char** name) {
  *name = "kernel_entry";
  return NVRTC_SUCCESS;
}
nvrtcResult nvrtcGetProgramLogSize(nvrtcProgram program, std::size_t* size) {
  *size = program->log.size() + 1;
  return NVRTC_SUCCESS;
}
nvrtcResult nvrtcGetProgramLog(nvrtcProgram program, char* log) {
  std::strcpy(log, program->log.c_str());
  return NVRTC_SUCCESS;
}
nvrtcResult nvrtcGetCUBINSize(nvrtcProgram program, std::size_t* size) {
  *size = program->shared_object.size() + 1;
  return NVRTC_SUCCESS;
}
nvrtcResult nvrtcGetCUBIN(nvrtcProgram program, char* code) {
  std::strcpy(code, program->shared_object.c_str());
  return NVRTC_SUCCESS;
}
nvrtcResult nvrtcGetPTXSize(nvrtcProgram program, std::size_t* size) {
  return nvrtcGetCUBINSize(program, size);
}
nvrtcResult nvrtcGetPTX(nvrtcProgram program, char* code) {
  return nvrtcGetCUBIN(program, code);
}

#if CUDART_VERSION >= 12050
cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned,
                                             unsigned long long, cudaDriverEntryPointQueryResult*) {
#else
cudaError_t cudaGetDriverEntryPoint(const char* symbol, void** function, unsigned long long,
                                    cudaDriverEntryPointQueryResult*) {
#endif
  const std::string name = symbol;
  *function = name == "cuLibraryLoadData"    ? reinterpret_cast<void*>(&load)
              : name == "cuLibraryGetKernel" ? reinterpret_cast<void*>(&get_kernel)
              : name == "cuLibraryUnload"    ? reinterpret_cast<void*>(&unload)
              : name == "cuLaunchKernel"     ? reinterpret_cast<void*>(&launch_kernel)
              : name == "cuGetErrorName"     ? reinterpret_cast<void*>(&error_name)
                                             : nullptr;
  return cudaSuccess;
}

} // extern "C"
