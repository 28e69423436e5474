// One step of the recurrence: no maps, parameters as they are in memory, vectors over the numbers of a state.
#pragma once

#include "scan.h"
#include "simd.h"

namespace s4 {
namespace S4_ISA {

// integers of the size of T, which say what a shuffle takes
template <typename T>
struct Places;

template <>
struct Places<float> {
  typedef int32_t type __attribute__((vector_size(S4_BYTES)));
};

template <>
struct Places<double> {
  typedef int64_t type __attribute__((vector_size(S4_BYTES)));
};

// Blocks of 2: numbers i and i + 1 of a state depend on both of them. `increment` may have a `tail`, or else null.
template <typename T, bool has_tail>
void move_pairs(const T* increment, const T* tail, const T* b, const T* before, T u, int64_t count, T* after) {
  constexpr int64_t lanes = Vector<T>::lanes;
  typename Places<T>::type even{}, odd{}, first{}, second{};
  for (int64_t i = 0; i < lanes; ++i) even[i] = 2 * i, odd[i] = 2 * i + 1, first[i] = i & ~1, second[i] = i | 1;
  const auto add = [&](typename Vector<T>::type& change, const T* matrix, typename Vector<T>::type x) {
    const auto low = load(matrix), high = load(matrix + lanes);
    change += __builtin_shuffle(low, high, even) * __builtin_shuffle(x, first);
    change += __builtin_shuffle(low, high, odd) * __builtin_shuffle(x, second);
  };
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto x = load(before + i);
    auto change = u * load(b + i);
    if constexpr (has_tail) add(change, tail + 2 * i, x);
    add(change, increment + 2 * i, x);
    store(after + i, x + change);
  }
  for (; i < count; ++i) {
    T change = u * b[i];
    if constexpr (has_tail) change += tail[2 * i] * before[i & ~1] + tail[2 * i + 1] * before[i | 1];
    after[i] = before[i] + (change + increment[2 * i] * before[i & ~1] + increment[2 * i + 1] * before[i | 1]);
  }
}

template <typename T>
T any_dot(const T* left, const T* right, int64_t count) {
  const int64_t whole = count / Vector<T>::lanes * Vector<T>::lanes;
  T total = dot(left, right, whole);
  for (int64_t i = whole; i < count; ++i) total += left[i] * right[i];
  return total;
}

// Of the sequences and heads from `begin` to `end`, heads innermost.
template <typename T>
void step(const Step<T>& s, int64_t begin, int64_t end) {
  const int64_t count = s.groups * s.size;
  for (int64_t at = begin; at < end; ++at) {
    const int64_t sequence = at / s.heads, head = at % s.heads;
    const T u = s.inputs[at], *before = s.state + at * count, *b = s.b + head * count;
    const T* increment = s.increment + head * count * s.size;
    const T* tail = s.tail == nullptr ? nullptr : s.tail + head * count * s.size;
    T* after = s.last + at * count;
    if (s.size == 2) {
      (tail == nullptr ? move_pairs<T, false> : move_pairs<T, true>)(increment, tail, b, before, u, count, after);
    } else {
      for (int64_t i = 0; i < count; ++i) {
        const T* x = before + i / s.size * s.size;
        T change = u * b[i];
        if (tail != nullptr) change += any_dot(tail + i * s.size, x, s.size);
        after[i] = before[i] + (change + any_dot(increment + i * s.size, x, s.size));
      }
    }
    for (int64_t r = 0; r < s.channels; ++r) {
      const T y = any_dot(s.c + (head * s.channels + r) * count, after, count);
      s.outputs[(sequence * s.channels + r) * s.heads + head] =
          s.skip == nullptr ? y : y + s.skip[r * s.heads + head] * u;
    }
  }
}

}  // namespace S4_ISA
}  // namespace s4
