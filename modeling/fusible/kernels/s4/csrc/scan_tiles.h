// The scan of a few heads: in tiles of steps, each of which is products of matrices and a short recurrence of chunks.
#pragma once

#include "gelu.h"
#include "maps.h"
#include "scan.h"

namespace s4 {
namespace S4_ISA {

template <typename T>
Layout layout(const Scan<T>& scan) {
  return Layout(scan.groups, scan.size, scan.channels, scan.length, Vector<T>::lanes);
}

// A row of a tile; the extra elements keep rows out of each other's cache sets.
template <typename T>
constexpr int64_t kRow = kTile + 64 / static_cast<int64_t>(sizeof(T));

template <typename T>
void pack(const T* from, int64_t head_stride, int64_t time_stride, int64_t heads, int64_t length, int64_t padded, T* to) {
  if (time_stride == 1) {
    for (int64_t h = 0; h < heads; ++h) copy(to + h * kRow<T>, from + h * head_stride, length);
  } else if (head_stride == 1) {
    turn(from, time_stride, length, heads, to, kRow<T>);
  } else {
    for (int64_t t = 0; t < length; ++t)
      for (int64_t h = 0; h < heads; ++h) to[h * kRow<T> + t] = from[h * head_stride + t * time_stride];
  }
  for (int64_t h = 0; h < heads; ++h) fill(to + h * kRow<T> + length, padded - length, T(0));
}

template <typename T>
void unpack(const T* from, int64_t heads, int64_t length, T* to, int64_t head_stride, int64_t time_stride) {
  if (time_stride == 1) {
    for (int64_t h = 0; h < heads; ++h) copy(to + h * head_stride, from + h * kRow<T>, length);
  } else if (head_stride == 1) {
    constexpr int64_t lanes = Vector<T>::lanes;
    for (int64_t t = 0; t < length; t += lanes)  // a cache line of heads is written at once
      turn(from + t, kRow<T>, heads, length - t < lanes ? length - t : lanes, to + t * time_stride, time_stride);
  } else {
    for (int64_t t = 0; t < length; ++t)
      for (int64_t h = 0; h < heads; ++h) to[h * head_stride + t * time_stride] = from[h * kRow<T> + t];
  }
}

// Maps of one head as products of matrices take them. Forward only: `outputs`, `toeplitz`; backward the others.
template <typename T>
struct HeadMaps {
  T* inputs;                  // [steps, width], A^(steps - 1 - j) b: what step j adds to the state
  T *outputs, *toeplitz;      // [channels, width, steps], [channels, steps, steps]: y of states and inputs
  T *leap, *tail_leap;        // A^steps, A^tail
  T *inputs_t, *outputs_t;    // [width, steps], [channels, steps, width]
  T *toeplitz_t;              // [channels, steps, steps]
  T *leap_t, *tail_leap_t;

  void place(const Layout& n, Arena& arena, bool backward) {
    inputs = arena.take<T>(n.vectors());
    leap = arena.take<T>(n.matrix());
    tail_leap = arena.take<T>(n.matrix());
    if (backward) {
      inputs_t = arena.take<T>(n.vectors());
      outputs_t = arena.take<T>(n.channels * n.vectors());
      toeplitz_t = arena.take<T>(n.channels * n.steps * n.steps);
      leap_t = arena.take<T>(n.matrix());
      tail_leap_t = arena.take<T>(n.matrix());
    } else {
      outputs = arena.take<T>(n.channels * n.vectors());
      toeplitz = arena.take<T>(n.channels * n.steps * n.steps);
    }
  }

  void make(const Layout& n, Maps& maps, int64_t chunks, int64_t tail, bool backward) {
    for (int64_t j = 0; j < n.steps; ++j) copy(inputs + j * n.width, maps.responses + (n.steps - 1 - j) * n.width, n.width);
    if (chunks > 0) copy(leap, maps.tape + (power(n, maps.matrix, n.steps, maps.tape) - 1) * n.matrix(), n.matrix());
    if (tail > 0) copy(tail_leap, maps.tape + (power(n, maps.matrix, tail, maps.tape) - 1) * n.matrix(), n.matrix());
    if (backward) {
      turn(inputs, n.width, n.steps, n.width, inputs_t, n.steps);
      if (chunks > 0) transpose(n, leap, leap_t);
      if (tail > 0) transpose(n, tail_leap, tail_leap_t);
    }
    for (int64_t r = 0; r < n.channels; ++r) {
      const double *rows = maps.readout(n, r) + n.width, *kernel = maps.kernel + r * n.steps;
      T* square = (backward ? toeplitz_t : toeplitz) + r * n.steps * n.steps;
      // rows are pieces of one: the kernel, or its end first, beside zeros
      T padded[2 * kDenseSteps] = {};
      for (int64_t l = 0; l < n.steps; ++l)
        padded[backward ? n.steps - 1 - l : n.steps + l] = static_cast<T>(kernel[l]);
      for (int64_t j = 0; j < n.steps; ++j) copy(square + j * n.steps, padded + n.steps - backward - j, n.steps);
      if (backward)
        copy(outputs_t + r * n.vectors(), rows, n.vectors());
      else
        turn(rows, n.width, n.steps, n.width, outputs + r * n.vectors(), n.steps);
    }
  }
};

// States before each chunk of a tile and after the last one, from `states[0]` on.
template <typename T>
void run_states(
    const Layout& n, const HeadMaps<T>& maps, const T* inputs, int64_t chunks, int64_t tail, T* states) {
  const int64_t width = n.width, steps = n.steps;
  product<T>({chunks, width, steps, inputs, steps, 1, maps.inputs, width, states + width, width, false});
  for (int64_t k = 0; k < chunks; ++k) apply(n, maps.leap, states + k * width, states + (k + 1) * width, true);
  if (tail > 0) {
    T* next = states + (chunks + 1) * width;
    const T* late = maps.inputs + (steps - tail) * width;
    product<T>({1, width, tail, inputs + chunks * steps, steps, 1, late, width, next, width, false});
    apply(n, maps.tail_leap, next - width, next, true);
  }
}

// Products with the zeros of a triangle would carry NaN and infinity back in time.
template <typename T>
void add_causal(const T* inputs, const T* toeplitz, int64_t rows, int64_t steps, T* outputs) {
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t j = 0; j < steps; ++j)
      for (int64_t t = j; t < steps; ++t)
        outputs[row * steps + t] += inputs[row * steps + j] * toeplitz[j * steps + t];
}

template <typename T>
struct Forward {
  Layout n;
  Maps exact;
  HeadMaps<T> maps[kHeads];
  T *inputs, *outputs, *states, *carried;
  int64_t bytes;

  Forward(const Scan<T>& scan, Arena& arena) : n(layout(scan)), exact(n, arena) {
    for (auto& head : maps) head.place(n, arena, false);
    inputs = arena.take<T>(kHeads * kRow<T>);
    outputs = arena.take<T>(n.channels * kHeads * kRow<T>);
    states = arena.take<T>((kTile / n.steps + 1) * n.width);
    carried = arena.take<T>(kHeads * n.width);
    bytes = arena.used;
  }

  void run(const Scan<T>& scan, int64_t first, int64_t from, int64_t to) {
    const int64_t heads = scan.heads - first < kHeads ? scan.heads - first : kHeads;
    const int64_t count = n.groups * n.size;
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t head = first + h;
      exact.make(
          n, scan.transition + head * count * n.size, scan.b + head * count, scan.c + head * n.channels * count,
          scan.skip == nullptr ? nullptr : scan.skip + head, scan.heads);
      maps[h].make(n, exact, scan.length / n.steps, scan.length % n.steps, false);
    }
    for (int64_t b = from; b < to; ++b) {
      const T* state = scan.state + (b * scan.heads + first) * count;
      for (int64_t h = 0; h < heads; ++h) load_vector(n, state + h * count, carried + h * n.width);
      for (int64_t start = 0; start < scan.length; start += kTile) tile(scan, first, heads, b, start);
      T* last = scan.last + (b * scan.heads + first) * count;
      for (int64_t h = 0; h < heads; ++h) store_vector(n, carried + h * n.width, last + h * count);
    }
  }

  void tile(const Scan<T>& scan, int64_t first, int64_t heads, int64_t b, int64_t start) {
    const int64_t steps = n.steps, left = scan.length - start, length = left < kTile ? left : kTile;
    const int64_t chunks = length / steps, tail = length % steps, rows = chunks + (tail > 0);
    const Strides &in = scan.inputs_at, &out = scan.outputs_at;
    pack(
        scan.inputs + b * in.batch + first * in.head + start * in.time, in.head, in.time, heads, length, rows * steps,
        inputs);
    for (int64_t h = 0; h < heads; ++h) {
      const T* u = inputs + h * kRow<T>;
      const bool finite = is_finite(u, rows * steps);
      copy(states, carried + h * n.width, n.width);
      run_states(n, maps[h], u, chunks, tail, states);
      copy(carried + h * n.width, states + rows * n.width, n.width);
      for (int64_t r = 0; r < n.channels; ++r) {
        T* y = outputs + (r * kHeads + h) * kRow<T>;
        const T* toeplitz = maps[h].toeplitz + r * steps * steps;
        product<T>({rows, steps, n.width, states, n.width, 1, maps[h].outputs + r * n.vectors(), steps, y, steps, false});
        if (finite)
          product<T>({rows, steps, steps, u, steps, 1, toeplitz, steps, y, steps, true});
        else
          add_causal(u, toeplitz, rows, steps, y);
        if (scan.gelu) gelu(y, rows * steps);
      }
    }
    for (int64_t r = 0; r < n.channels; ++r)
      unpack(
          outputs + r * kHeads * kRow<T>, heads, length,
          scan.outputs + b * out.batch + r * out.channel + first * out.head + start * out.time, out.head, out.time);
  }
};

}  // namespace S4_ISA
}  // namespace s4
