// One step of the recurrence, in place: no maps, parameters as they are in memory, vectors over the numbers of a state.
#pragma once

#include "scan.h"
#include "simd.h"

namespace s4 {
namespace S4_ISA {

template <typename T>
T any_dot(const T* left, const T* right, int64_t count) {
  const int64_t whole = count / Vector<T>::lanes * Vector<T>::lanes;
  T total = dot(left, right, whole);
  for (int64_t i = whole; i < count; ++i) total += left[i] * right[i];
  return total;
}

// In which type a step is summed up. Where products are rounded before they are added, a tail, which is less than half of
// the last digit, would never count; wider numbers keep it.
#if defined(__FMA__) || defined(__aarch64__)
template <typename T>
using Sum = T;
#else
template <typename T>
using Sum = double;
#endif

// Numbers i and i + 1 of a state are a pair, which a block turns; `inner` are products of the state and rows of V, of
// which there are `rank`. Gives the product of the new state and `c`.
template <typename T, bool has_tail>
inline __attribute__((always_inline)) T move_pairs(
    const T* increment, const T* tail, const T* b, const T* c, const T* left, const T* inner, int64_t rank, T u,
    int64_t count, T* state) {
  using V = typename Vector<T>::type;
  constexpr int64_t lanes = Vector<T>::lanes;
  typename Places<T>::type first{}, second{}, other{};
  V sign{}, sums{};
  for (int64_t i = 0; i < lanes; ++i) first[i] = i & ~1, second[i] = i | 1, other[i] = i ^ 1, sign[i] = i & 1 ? 1 : -1;
  constexpr bool is_same = sizeof(Sum<T>) == sizeof(T);
  int64_t i = 0;
  for (; is_same && i + lanes <= count; i += lanes) {
    const V x = load(state + i), turned = sign * __builtin_shuffle(x, other);
    const auto add = [&](V& change, const T* matrix) {
      const V parts = load(matrix + i);
      change += __builtin_shuffle(parts, first) * x;
      change += __builtin_shuffle(parts, second) * turned;
    };
    V change = u * load(b + i);
    for (int64_t r = 0; r < rank; ++r) change -= inner[r] * load(left + r * count + i);
    // in this order: a tail that is added to a rounded sum would be rounded away
    if constexpr (has_tail) add(change, tail);
    add(change, increment);
    const V after = x + change;
    store(state + i, after);
    sums += after * load(c + i);
  }
  T y = total<T>(sums);
  for (; i < count; i += 2) {
    const Sum<T> one = state[i], two = state[i + 1];
    for (int64_t j = i; j < i + 2; ++j) {
      const auto add = [&](Sum<T>& change, const T* matrix) {
        change += matrix[j] * one;
        change += (j == i ? -matrix[i + 1] : matrix[i]) * two;
      };
      Sum<T> change = Sum<T>(u) * b[j];
      for (int64_t r = 0; r < rank; ++r) change -= Sum<T>(inner[r]) * left[r * count + j];
      if constexpr (has_tail) add(change, tail);
      add(change, increment);
      state[j] = static_cast<T>((j == i ? one : two) + change);
      y += state[j] * c[j];
    }
  }
  return y;
}

// Of the pairs of a tile of heads and a sequence from `begin` to `end`, sequences innermost; `scratch` is `rank` numbers.
template <typename T>
void step(const Step<T>& s, int64_t begin, int64_t end, void* scratch) {
  const int64_t count = 2 * s.groups;
  T* inner = static_cast<T*>(scratch);
  for (int64_t at = begin; at < end; ++at) {
    const int64_t sequence = at % s.batch, from = at / s.batch * s.tile;
    const int64_t to = from + s.tile < s.heads ? from + s.tile : s.heads;
    for (int64_t head = from; head < to; ++head) {
      const T u = s.inputs[sequence * s.heads + head], *b = s.b + head * count, *c = s.c + head * s.channels * count;
      const T *increment = s.increment + head * count, *left = s.left + head * s.rank * count;
      T* state = s.state + (sequence * s.heads + head) * count;
      for (int64_t r = 0; r < s.rank; ++r) inner[r] = any_dot(s.right + (head * s.rank + r) * count, state, count);
      T y = s.tail == nullptr
          ? move_pairs<T, false>(increment, nullptr, b, c, left, inner, s.rank, u, count, state)
          : move_pairs<T, true>(increment, s.tail + head * count, b, c, left, inner, s.rank, u, count, state);
      for (int64_t r = 0; r < s.channels; ++r) {
        if (r > 0) y = any_dot(c + r * count, static_cast<const T*>(state), count);
        const T direct = s.skip == nullptr ? T(0) : s.skip[r * s.heads + head] * u;
        s.outputs[(sequence * s.channels + r) * s.heads + head] = y + direct;
      }
    }
  }
}

}  // namespace S4_ISA
}  // namespace s4
