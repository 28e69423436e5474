// One step of the recurrence, in place: no maps, parameters as they are in memory, vectors over the numbers of a state.
#pragma once

#include "scan.h"
#include "simd.h"

namespace s4 {
namespace S4_ISA {

// Blocks of 2: numbers i and i + 1 of a state depend on both of them. Gives the product of the new state and `c`.
template <typename T, bool rotations, bool has_tail>
inline __attribute__((always_inline)) T move_pairs(
    const T* increment, const T* tail, const T* b, const T* c, T u, int64_t count, T* state) {
  using V = typename Vector<T>::type;
  constexpr int64_t lanes = Vector<T>::lanes;
  typename Places<T>::type even{}, odd{}, first{}, second{}, other{};
  V sign{}, sums{};
  for (int64_t i = 0; i < lanes; ++i) {
    even[i] = 2 * i, odd[i] = 2 * i + 1;
    first[i] = i & ~1, second[i] = i | 1, other[i] = i ^ 1, sign[i] = i & 1 ? 1 : -1;
  }
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const V x = load(state + i), one = __builtin_shuffle(x, first), two = __builtin_shuffle(x, second);
    const auto add = [&](V& change, const T* matrix) {
      if constexpr (rotations) {
        const V parts = load(matrix + i), turned = sign * __builtin_shuffle(x, other);
        change += __builtin_shuffle(parts, first) * x;
        change += __builtin_shuffle(parts, second) * turned;
      } else {
        const V low = load(matrix + 2 * i), high = load(matrix + 2 * i + lanes);
        change += __builtin_shuffle(low, high, even) * one;
        change += __builtin_shuffle(low, high, odd) * two;
      }
    };
    V change = u * load(b + i);
    // in this order: a tail that is added to a rounded sum would be rounded away
    if constexpr (has_tail) add(change, tail);
    add(change, increment);
    const V after = x + change;
    store(state + i, after);
    sums += after * load(c + i);
  }
  T y = total<T>(sums);
  for (; i < count; i += 2) {
    const T one = state[i], two = state[i + 1];
    for (int64_t j = i; j < i + 2; ++j) {
      const auto add = [&](T& change, const T* matrix) {
        change += (rotations ? matrix[j] : matrix[2 * j]) * one;
        change += (rotations ? (j == i ? -matrix[i + 1] : matrix[i]) : matrix[2 * j + 1]) * two;
      };
      T change = u * b[j];
      if constexpr (has_tail) add(change, tail);
      add(change, increment);
      state[j] += change;
      y += state[j] * c[j];
    }
  }
  return y;
}

template <typename T>
T any_dot(const T* left, const T* right, int64_t count) {
  const int64_t whole = count / Vector<T>::lanes * Vector<T>::lanes;
  T total = dot(left, right, whole);
  for (int64_t i = whole; i < count; ++i) total += left[i] * right[i];
  return total;
}

// Blocks of any size; `before` is memory for one block of the state.
template <typename T>
void move_blocks(const T* increment, const T* tail, const T* b, T u, int64_t groups, int64_t size, T* state, T* before) {
  for (int64_t i = 0; i < groups * size; ++i) {
    if (i % size == 0) copy(before, state + i, size);
    T change = u * b[i];
    if (tail != nullptr) change += any_dot(tail + i * size, before, size);
    state[i] += change + any_dot(increment + i * size, before, size);
  }
}

// Of the pairs of a tile of heads and a sequence from `begin` to `end`, sequences innermost.
template <typename T>
void step(const Step<T>& s, int64_t begin, int64_t end, void* scratch) {
  const int64_t count = s.groups * s.size, entries = s.rotations ? count : count * s.size;
  for (int64_t at = begin; at < end; ++at) {
    const int64_t sequence = at % s.batch, from = at / s.batch * s.tile;
    const int64_t to = from + s.tile < s.heads ? from + s.tile : s.heads;
    for (int64_t head = from; head < to; ++head) {
      const int64_t place = s.order == nullptr ? s.first + head : s.order[s.first + head];
      const T u = s.inputs[sequence * s.all + place], *b = s.b + head * count, *c = s.c + head * s.channels * count;
      const T* increment = s.increment + head * entries;
      const T* tail = s.tail == nullptr ? nullptr : s.tail + head * entries;
      T* state = s.state + (sequence * s.all + s.first + head) * count;
      T y;
      if (s.rotations) {
        y = tail == nullptr ? move_pairs<T, true, false>(increment, tail, b, c, u, count, state)
                            : move_pairs<T, true, true>(increment, tail, b, c, u, count, state);
      } else if (s.size == 2) {
        y = tail == nullptr ? move_pairs<T, false, false>(increment, tail, b, c, u, count, state)
                            : move_pairs<T, false, true>(increment, tail, b, c, u, count, state);
      } else {
        move_blocks(increment, tail, b, u, s.groups, s.size, state, static_cast<T*>(scratch));
        y = any_dot(c, state, count);
      }
      for (int64_t r = 0; r < s.channels; ++r) {
        if (r > 0) y = any_dot(c + r * count, state, count);
        const T direct = s.skip == nullptr ? T(0) : s.skip[r * s.all + place] * u;
        s.outputs[(sequence * s.channels + r) * s.all + place] = y + direct;
      }
    }
  }
}

}  // namespace S4_ISA
}  // namespace s4
