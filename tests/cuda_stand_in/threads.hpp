// SPDX-License-Identifier: Apache-2.0
//
// CUDA C++ for the host's compiler: put in front of the kernels' source. The threads of a block are
// contexts that run one after the other and change at barriers; blocks run one after the other. A
// barrier that not all threads of a block, or of a warp, reach ends the program.
//
// A context is made once (ucontext) and serves block after block. The changes between contexts are
// jumps (setjmp): swapcontext would make two system calls for each.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <new>
#include <thread>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "cuda_stand_in/launch.hpp"
#include "ressvd/core/scalar.hpp"

namespace stand_in {

struct index3 {
  unsigned x, y, z;
};

enum class wait { none, warp, block, forever };

struct thread {
  jmp_buf place; ///< where it goes on
  std::unique_ptr<char[]> stack;
  index3 index;
  wait waits; ///< for whom; forever: it has finished
};

inline thread_local jmp_buf scheduler;
inline thread_local thread* running = nullptr;

/// Goes back to the scheduler until it resumes this thread.
inline void leave(thread& t) {
  if (_setjmp(t.place) == 0) _longjmp(scheduler, 1);
}

} // namespace stand_in

inline thread_local stand_in::index3 threadIdx, blockIdx, blockDim, gridDim;

namespace stand_in {

inline void wait_for(wait whom) {
  thread* const self = running;
  self->waits = whom;
  leave(*self);
  threadIdx = self->index;
}

/// What lane other(lane) of the warp has for `value`.
template <class T, class Other>
T exchange(T value, Other other) {
  static thread_local T lanes[1024];
  const unsigned t = threadIdx.x + blockDim.x * threadIdx.y;
  lanes[t] = value;
  wait_for(wait::warp);
  const T taken = lanes[t / 32 * 32 + other(t % 32)];
  wait_for(wait::warp);
  return taken;
}

} // namespace stand_in

inline void __syncthreads() {
  stand_in::wait_for(stand_in::wait::block);
}
inline void __threadfence() {
  std::atomic_thread_fence(std::memory_order_seq_cst);
}
inline void __nanosleep(unsigned) {
  std::this_thread::yield();
}

template <class T>
T __shfl_down_sync(unsigned, T value, int step) {
  const auto down = static_cast<unsigned>(step);
  return stand_in::exchange(value,
                            [=](unsigned lane) { return lane + down < 32 ? lane + down : lane; });
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int step) {
  return stand_in::exchange(value,
                            [=](unsigned lane) { return lane ^ static_cast<unsigned>(step); });
}

inline unsigned atomicAdd(unsigned* address, unsigned value) {
  return __atomic_fetch_add(address, value, __ATOMIC_SEQ_CST);
}
inline unsigned long long atomicMax(unsigned long long* address, unsigned long long value) {
  return std::exchange(*address, std::max(*address, value));
}
inline unsigned long long atomicMin(unsigned long long* address, unsigned long long value) {
  return std::exchange(*address, std::min(*address, value));
}

template <class To, class From>
To bits_as(From from) {
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
inline float __uint_as_float(unsigned bits) {
  return bits_as<float>(bits);
}
inline unsigned __float_as_uint(float value) {
  return bits_as<unsigned>(value);
}
inline long long __double_as_longlong(double value) {
  return bits_as<long long>(value);
}
inline void sincospi(double x, double* sine, double* cosine) {
  *sine = std::sin(M_PI * x);
  *cosine = std::cos(M_PI * x);
}
inline float half_to_float(unsigned short bits) {
  return static_cast<float>(bits_as<ressvd::half>(bits));
}
inline unsigned short float_to_half(float value) {
  return ressvd::half(value).bits;
}

namespace stand_in {

template <class Function>
struct kernel;

template <class... Args>
struct kernel<void (*)(Args...)> {
  using values = std::tuple<Args...>;
  static inline thread_local void (*function)(Args...) = nullptr;
  static inline thread_local values* arguments = nullptr;

  template <class T>
  static T take(const void* argument, const launch& l) {
    T value;
    std::memcpy(&value, argument, sizeof value);
    if constexpr (std::is_pointer_v<T>) {
      return value == nullptr ? nullptr : static_cast<T>(l.translate(value));
    } else {
      return value;
    }
  }

  template <std::size_t... I>
  static void take_all(void** arguments_given, launch& l, std::index_sequence<I...>) {
    static_assert(sizeof(values) <= sizeof l.arguments);
    new (l.arguments) values(take<Args>(arguments_given[I], l)...);
  }

  /// A thread's life: one block after the other.
  static void body() {
    thread& self = *running;
    for (;;) {
      threadIdx = self.index;
      std::apply(function, *arguments);
      self.waits = wait::forever;
      leave(self);
    }
  }

  /// Runs the thread to its next barrier, or to its end.
  static void resume(thread& t) {
    running = &t;
    if (_setjmp(scheduler) != 0) return;
    if (t.stack) _longjmp(t.place, 1);
    constexpr std::size_t stack_size = 64 * 1024;
    t.stack.reset(new char[stack_size]);
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = t.stack.get();
    context.uc_stack.ss_size = stack_size;
    context.uc_link = nullptr;
    makecontext(&context, &body, 0);
    setcontext(&context);
  }

  /// Lets the threads go on if all of them wait as said.
  static bool release(std::deque<thread>& threads, unsigned first, unsigned last, wait all) {
    for (unsigned k = first; k < last; ++k) {
      if (threads[k].waits != all) return false;
    }
    for (unsigned k = first; k < last; ++k)
      threads[k].waits = wait::none;
    return true;
  }

  /// Each round runs every thread that may to its next barrier.
  static void run_block(std::deque<thread>& threads, unsigned width, unsigned count) {
    for (unsigned k = 0; k < count; ++k) {
      threads[k].index = {k % width, k / width, 0};
      threads[k].waits = wait::none;
    }
    for (;;) {
      unsigned finished = 0;
      for (unsigned k = 0; k < count; ++k) {
        if (threads[k].waits == wait::none) resume(threads[k]);
        finished += threads[k].waits == wait::forever ? 1 : 0;
      }
      if (finished == count) return;
      bool any = release(threads, 0, count, wait::block);
      for (unsigned warp = 0; warp < count; warp += 32)
        any = release(threads, warp, std::min(warp + 32, count), wait::warp) || any;
      if (!any) {
        std::fputs("CUDA stand-in: not all threads of a block reach a barrier\n", stderr);
        std::abort();
      }
    }
  }

  static void run_at(const launch& l, values* given, void (*kernel_function)(Args...), unsigned bx,
                     unsigned by) {
    function = kernel_function;
    arguments = given;
    gridDim = {l.grid[0], l.grid[1], 1};
    blockDim = {l.block[0], l.block[1], 1};
    blockIdx = {bx, by, 0};
    static thread_local std::deque<thread> threads; // a deque: they keep their addresses
    const unsigned count = l.block[0] * l.block[1];
    if (threads.size() < count) threads.resize(count);
    run_block(threads, l.block[0], count);
  }

  static void run(launch& l) {
    auto* const given = std::launder(reinterpret_cast<values*>(l.arguments));
    const auto kernel_function = function;
    for (unsigned by = 0; by < l.grid[1]; ++by) {
      for (unsigned bx = 0; bx < l.grid[0]; ++bx)
        run_at(l, given, kernel_function, bx, by);
    }
  }
};

template <auto function>
void enter(void** arguments, launch& l) {
  using k = kernel<decltype(function)>;
  k::take_all(arguments, l, std::make_index_sequence<std::tuple_size_v<typename k::values>>{});
  l.run = [](launch& now) {
    k::function = function;
    k::run(now);
  };
}

} // namespace stand_in

#define __global__
#define __launch_bounds__(...)
#define __shared__ static thread_local
#define ressvd device // the kernels' namespace; the library's own was used above
