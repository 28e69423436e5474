// Enough of CUDA to run its kernels on a CPU: the threads of a block are contexts that take turns at each barrier.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define S4_SHARED(T, name) T* name = reinterpret_cast<T*>(emulated::memory.data())

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  dim3(unsigned a, unsigned b, unsigned c) : x(a), y(b), z(c) {}
};

namespace emulated {
struct Thread {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(1 << 16);
  bool done;
};
inline std::vector<Thread> threads(256);
inline std::vector<double> memory;
inline ucontext_t scheduler;
inline std::function<void()> body;
inline unsigned current;

inline void enter() {
  body();
  threads[current].done = true;
  swapcontext(&threads[current].context, &scheduler);
}
}  // namespace emulated

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

inline void __syncthreads() {
  const unsigned self = emulated::current;
  swapcontext(&emulated::threads[self].context, &emulated::scheduler);
}

// Order alternates from barrier to barrier, so that results that depend on it differ; shared memory starts as NaN.
inline void emulate(dim3 grid, int64_t count, int64_t bytes, std::function<void()> kernel) {
  using namespace emulated;
  body = std::move(kernel), gridDim = grid, blockDim = dim3(static_cast<unsigned>(count), 1, 1);
  memory.resize(static_cast<std::size_t>(bytes / 8 + 1));
  for (unsigned y = 0; y < grid.y; ++y)
    for (unsigned x = 0; x < grid.x; ++x) {
      blockIdx = dim3(x, y, 0);
      std::memset(memory.data(), 0xff, memory.size() * 8);
      for (int64_t i = 0; i < count; ++i) {
        Thread& thread = threads[static_cast<std::size_t>(i)];
        thread.done = false;
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = thread.stack.data();
        thread.context.uc_stack.ss_size = thread.stack.size();
        makecontext(&thread.context, enter, 0);
      }
      for (bool forward = true, running = true; running; forward = !forward) {
        int64_t finished = 0;
        for (int64_t i = 0; i < count; ++i) {
          current = static_cast<unsigned>(forward ? i : count - 1 - i);
          threadIdx = dim3(current, 0, 0);
          swapcontext(&scheduler, &threads[current].context);
          finished += threads[current].done;
        }
        // a barrier that only some threads reach
        if (finished != 0 && finished != count) std::abort();
        running = finished == 0;
      }
    }
}
