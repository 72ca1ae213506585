// SPDX-License-Identifier: Apache-2.0
//
// The CUDA tests need a device.
#include <cuda_runtime_api.h>

#include <string>

#include "support/requirement.hpp"

namespace {

std::string missing_device() {
  int devices = 0;
  const cudaError_t status = cudaGetDeviceCount(&devices);
  if (status == cudaSuccess && devices > 0) return {};
  return std::string("no CUDA device (") + cudaGetErrorString(status) + ")";
}

[[maybe_unused]] const bool registered = [] {
  support::program_requirement() = missing_device;
  return true;
}();

} // namespace
