// SPDX-License-Identifier: Apache-2.0
//
// The CUDA run-time library: memory, streams, copies.
#include <sys/mman.h>

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "cuda_stand_in/stand_in.hpp"

struct CUstream_st {
  std::deque<std::function<void()>> work;
  bool destroyed = false;
};

struct CUevent_st {
  CUstream_st* stream = nullptr; // of the last record
  std::shared_ptr<bool> done;    // whether the stream has got there
  bool destroyed = false;
};

namespace stand_in {

controls control;

void misuse(const char* format, ...) {
  std::va_list arguments;
  va_start(arguments, format);
  std::fputs("CUDA stand-in: ", stderr);
  std::vfprintf(stderr, format, arguments);
  std::fputc('\n', stderr);
  va_end(arguments);
  std::abort();
}

namespace {

std::recursive_mutex mutex; // guards everything below
using lock = std::lock_guard<std::recursive_mutex>;

constexpr std::size_t arena_size = std::size_t{1} << 38;
constexpr std::size_t capacity = std::size_t{1} << 34;
constexpr std::size_t margin = 512; // watched bytes behind each block
constexpr int poison = 0xff;        // NaN in every floating-point type

char* map_arena(int protection) {
  void* p =
      mmap(nullptr, arena_size, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) misuse("no address space");
  return static_cast<char*>(p);
}
char* addresses() { // what callers hold
  static char* const p = map_arena(PROT_NONE);
  return p;
}
char* contents() { // the bytes behind
  static char* const p = map_arena(PROT_READ | PROT_WRITE);
  return p;
}

struct allocation {
  std::size_t size;
  bool live;
};
std::map<std::size_t, allocation> allocations; // by offset; addresses are never used twice
std::size_t arena_top = 4096;
std::size_t in_use = 0;

thread_local cudaError_t last_error = cudaSuccess;
thread_local int current_device = 0;

cudaError_t result(cudaError_t status) {
  if (status != cudaSuccess) last_error = status;
  return status;
}

std::size_t offset_of(const void* address) {
  return static_cast<std::size_t>(static_cast<const char*>(address) - addresses());
}
bool is_device(const void* address) {
  return address >= addresses() && address < addresses() + arena_size;
}

cudaError_t allocate(void** address, std::size_t size) {
  const lock hold(mutex);
  *address = nullptr;
  if (size > capacity - in_use) return result(cudaErrorMemoryAllocation);
  const std::size_t offset = (arena_top + 255) / 256 * 256;
  arena_top = offset + size + margin;
  std::memset(contents() + offset, poison, size + margin);
  allocations[offset] = {size, true};
  in_use += size;
  *address = addresses() + offset;
  return cudaSuccess;
}

/// Returns the block's offset; it is still to be retired.
std::size_t release(void* address) {
  const lock hold(mutex);
  const auto found = allocations.find(offset_of(address));
  if (found == allocations.end() || !found->second.live) misuse("free of what is not allocated");
  found->second.live = false;
  in_use -= found->second.size;
  return found->first;
}

void retire(std::size_t offset) {
  const lock hold(mutex);
  const std::size_t size = allocations.at(offset).size;
  for (std::size_t i = size; i < size + margin; ++i) {
    if (static_cast<unsigned char>(contents()[offset + i]) != poison) {
      misuse("something was written behind a block of %zu bytes", size);
    }
  }
  std::memset(contents() + offset, poison, size);
}

CUstream_st* queue_of(cudaStream_t stream) {
  static CUstream_st default_stream;
  if (stream == nullptr || stream == cudaStreamLegacy || stream == cudaStreamPerThread) {
    return &default_stream;
  }
  if (stream->destroyed) misuse("use of a destroyed stream");
  return stream;
}

/// Runs what the stream has to do, all of it or until `done`.
void drain(CUstream_st* queue, const bool* done = nullptr) {
  while (done == nullptr || !*done) {
    std::function<void()> work;
    {
      const lock hold(mutex);
      if (queue->work.empty()) return;
      work = std::move(queue->work.front());
      queue->work.pop_front();
    }
    work();
  }
}

CUevent_st* known(cudaEvent_t event) {
  if (event == nullptr || event->destroyed) misuse("use of an event that is none");
  return event;
}

std::map<const char*, std::size_t> pinned; // host memory by its start

} // namespace

std::size_t bytes_in_use() {
  const lock hold(mutex);
  return in_use;
}

char* device(const void* address, std::size_t size, const char* what) {
  if (!is_device(address)) misuse("%s: not device memory", what);
  const lock hold(mutex);
  const std::size_t offset = offset_of(address);
  auto block = allocations.upper_bound(offset);
  if (block == allocations.begin()) misuse("%s: not allocated", what);
  --block;
  if (!block->second.live) misuse("%s: memory that was freed", what);
  if (offset + size > block->first + block->second.size) {
    misuse("%s: %zu bytes at %zu of a block of %zu", what, size, offset - block->first,
           block->second.size);
  }
  return contents() + offset;
}

void* host(const void* address, const char* what) {
  if (address == nullptr) misuse("%s: null", what);
  if (is_device(address)) misuse("%s: device memory where host memory belongs", what);
  return const_cast<void*>(address);
}

void enqueue(cudaStream_t stream, std::function<void()> work) {
  CUstream_st* const queue = queue_of(stream);
  const lock hold(mutex);
  queue->work.push_back(std::move(work));
}

void leave_error(cudaError_t status) {
  last_error = status;
}

} // namespace stand_in

using namespace stand_in;

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 2;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  current_device = device;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = control.compute_capability / 10;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = control.compute_capability % 10;
      break;
    case cudaDevAttrSingleToDoublePrecisionPerfRatio:
      *value = control.double_ratio;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = multiprocessors;
      break;
    default:
      misuse("an attribute that no device of the stand-in has, %d", attribute);
  }
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {};
  std::snprintf(properties->name, sizeof properties->name, "stand-in");
  return cudaSuccess;
}
cudaError_t cudaGetLastError() {
  return std::exchange(last_error, cudaSuccess);
}
const char* cudaGetErrorName(cudaError_t status) {
  return status == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation"
         : status == cudaErrorIllegalAddress ? "cudaErrorIllegalAddress"
                                             : "cudaError";
}
const char* cudaGetErrorString(cudaError_t) {
  return "an error of the stand-in";
}

cudaError_t cudaMalloc(void** address, std::size_t size) {
  return allocate(address, size);
}
cudaError_t cudaMallocAsync(void** address, std::size_t size, cudaStream_t stream) {
  queue_of(stream);
  return allocate(address, size);
}
cudaError_t cudaFree(void* address) {
  if (address != nullptr) retire(release(address));
  return cudaSuccess;
}
cudaError_t cudaFreeAsync(void* address, cudaStream_t stream) {
  const std::size_t offset = release(address);
  enqueue(stream, [offset] { retire(offset); });
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(std::size_t* available, std::size_t* total) {
  *available = capacity - bytes_in_use();
  *total = capacity;
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new CUstream_st;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  drain(queue_of(stream));
  stream->destroyed = true; // and kept, to know it again
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  ++control.waits;
  drain(queue_of(stream));
  return result(control.device_lost ? cudaErrorIllegalAddress : cudaSuccess);
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  enqueue(stream, [=] { function(data); });
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  known(event)->destroyed = true; // and kept, to know it again
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  known(event)->stream = queue_of(stream);
  event->done = std::make_shared<bool>(false);
  enqueue(stream, [done = event->done] { *done = true; });
  return cudaSuccess;
}
// An event that was never recorded counts as one that has passed.
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (known(event)->stream != nullptr) drain(event->stream, event->done.get());
  return result(control.device_lost ? cudaErrorIllegalAddress : cudaSuccess);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (known(event)->stream == nullptr) return cudaSuccess;
  enqueue(stream, [from = event->stream, done = event->done] { drain(from, done.get()); });
  return cudaSuccess;
}

cudaError_t cudaMallocHost(void** address, std::size_t size) {
  *address = std::malloc(size);
  const lock hold(mutex);
  pinned[static_cast<char*>(*address)] = size;
  std::memset(*address, poison, size);
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* address) {
  if (address == nullptr) return cudaSuccess;
  const lock hold(mutex);
  const auto found = pinned.find(static_cast<char*>(address));
  if (found == pinned.end()) misuse("cudaFreeHost of memory that is not pinned");
  std::memset(address, poison, found->second);
  pinned.erase(found);
  std::free(address);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* address, int value, std::size_t size, cudaStream_t stream) {
  char* const bytes = device(address, size, "cudaMemsetAsync");
  enqueue(stream, [=] { std::memset(bytes, value, size); });
  return cudaSuccess;
}
cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from,
                              std::size_t from_pitch, std::size_t width, std::size_t height,
                              cudaMemcpyKind kind, cudaStream_t stream) {
  if (width > to_pitch || width > from_pitch) return result(cudaErrorInvalidValue);
  const std::size_t to_size = (height - 1) * to_pitch + width;
  const std::size_t from_size = (height - 1) * from_pitch + width;
  auto* const target = kind == cudaMemcpyDeviceToHost
                           ? static_cast<char*>(host(to, "cudaMemcpy, target"))
                           : device(to, to_size, "cudaMemcpy, target");
  const auto* const source = kind == cudaMemcpyHostToDevice
                                 ? static_cast<char*>(host(from, "cudaMemcpy, source"))
                                 : device(from, from_size, "cudaMemcpy, source");
  enqueue(stream, [=] {
    for (std::size_t i = 0; i < height; ++i)
      std::memcpy(target + i * to_pitch, source + i * from_pitch, width);
  });
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t size, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return cudaMemcpy2DAsync(to, size, from, size, size, 1, kind, stream);
}

} // extern "C"
