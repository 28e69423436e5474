// What the operations have in common: checks, memory, and the choice of the instruction set.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdlib>
#include <initializer_list>
#include <memory>
#include <new>
#include <string>
#include <type_traits>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "scan.h"

namespace s4 {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The table of the best instruction set that this machine has.
const Table& table();

template <typename T>
const Functions<T>& functions() {
  if constexpr (std::is_same_v<T, float>)
    return table().single;
  else
    return table().twice;
}

// Subnormal numbers are zero in this thread while it lives: what decays would reach them, at ten times the cost.
class FlushToZero {
#if defined(__x86_64__)
  unsigned before = _mm_getcsr();

 public:
  FlushToZero() { _mm_setcsr(before | 0x8040); }
  ~FlushToZero() { _mm_setcsr(before); }
#elif defined(__aarch64__)
  uint64_t before;

 public:
  FlushToZero() {
    asm volatile("mrs %0, fpcr" : "=r"(before));
    asm volatile("msr fpcr, %0" : : "r"(before | (1 << 24)));
  }
  ~FlushToZero() { asm volatile("msr fpcr, %0" : : "r"(before)); }
#else
 public:
  FlushToZero() {}
#endif
  FlushToZero(const FlushToZero&) = delete;
  FlushToZero& operator=(const FlushToZero&) = delete;
};

// Calls `run(i, scratch)` for all i < count, on all threads. Their memory is the calling thread's, which has it from one
// call to the next: what new threads allocate is new pages each time.
template <typename Run>
void over(int64_t count, int64_t bytes, Run run) {
  if (count == 0) return;
  const int64_t threads = torch::stable::get_num_threads(), workers = count < threads ? count : threads;
  const int64_t each = (bytes + 63) / 64 * 64;
  const std::unique_ptr<void, decltype(&std::free)> memory(std::aligned_alloc(64, workers * each), &std::free);
  if (memory == nullptr) throw std::bad_alloc();
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    const FlushToZero mode;
    for (int64_t worker = begin; worker < end; ++worker)
      for (int64_t i = count * worker / workers; i < count * (worker + 1) / workers; ++i)
        run(i, static_cast<char*>(memory.get()) + worker * each);
  });
}

// Of sizes, for messages.
template <typename Sizes>
std::string shown(const Sizes& sizes) {
  std::string text;
  for (const int64_t size : sizes) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "[" + text + "]";
}

inline void check_kind(const Tensor& tensor, const char* name, ScalarType dtype) {
  STD_TORCH_CHECK(tensor.is_cpu(), name, " must be on the CPU");
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, " has dtype ", tensor.scalar_type(), " instead of ", dtype);
}

inline void check_tensor(const Tensor& tensor, const char* name, ScalarType dtype, std::initializer_list<int64_t> shape) {
  check_kind(tensor, name, dtype);
  const auto sizes = tensor.sizes();
  const bool fits = std::equal(sizes.begin(), sizes.end(), shape.begin(), shape.end());
  STD_TORCH_CHECK(fits, name, " has shape ", shown(sizes), " instead of ", shown(shape));
}

inline ScalarType check_real(const Tensor& tensor, const char* name) {
  const ScalarType dtype = tensor.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, name, " must be float32 or float64, not ", dtype);
  return dtype;
}

// to ask is a tenth of the time that calls take which have nothing to do
inline Tensor as(const Tensor& tensor, ScalarType dtype) {
  if (tensor.scalar_type() == dtype && tensor.is_contiguous()) return tensor;
  return torch::stable::contiguous(torch::stable::to(tensor, dtype));
}

template <typename T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

}  // namespace s4
