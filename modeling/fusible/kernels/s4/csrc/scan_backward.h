// The gradient of the scan of a few heads: tiles from the last to the first, whose states are computed again.
#pragma once

#include "scan_tiles.h"

namespace s4 {
namespace S4_ISA {

// Sums over chunks and sequences of the gradients of one head's maps, laid out as they are in `HeadMaps`.
template <typename T>
struct HeadGradients {
  T *inputs, *outputs_t, *toeplitz_t, *leap, *tail_leap;

  void place(const Layout& n, Arena& arena) {
    inputs = arena.take<T>(n.vectors());
    outputs_t = arena.take<T>(n.channels * n.vectors());
    toeplitz_t = arena.take<T>(n.channels * n.steps * n.steps);
    leap = arena.take<T>(n.matrix());
    tail_leap = arena.take<T>(n.matrix());
  }

  void clear(const Layout& n) {
    fill(inputs, n.vectors(), T(0));
    fill(outputs_t, n.channels * n.vectors(), T(0));
    fill(toeplitz_t, n.channels * n.steps * n.steps, T(0));
    fill(leap, n.matrix(), T(0));
    fill(tail_leap, n.matrix(), T(0));
  }

  void to(const Layout& n, MapGradients& sums) const {
    for (int64_t j = 0; j < n.steps; ++j)
      copy(sums.responses + (n.steps - 1 - j) * n.width, inputs + j * n.width, n.width);
    copy(sums.leap, leap, n.matrix());
    copy(sums.tail_leap, tail_leap, n.matrix());
    fill(sums.kernel, n.channels * n.steps, 0.0);
    for (int64_t r = 0; r < n.channels; ++r) {
      copy(sums.readouts + r * (n.vectors() + n.width) + n.width, outputs_t + r * n.vectors(), n.vectors());
      for (int64_t t = 0; t < n.steps; ++t)
        for (int64_t j = 0; j <= t; ++j)
          sums.kernel[r * n.steps + t - j] += toeplitz_t[(r * n.steps + t) * n.steps + j];
    }
  }
};

template <typename T>
struct Backward {
  Layout n;
  Maps exact;
  MapGradients sums;
  HeadMaps<T> maps[kHeads];
  HeadGradients<T> totals[kHeads];
  T *inputs, *outputs, *of_inputs, *states, *of_states, *carried, *starts;
  int64_t bytes;

  Backward(const Scan<T>& scan, Arena& arena) : n(layout(scan)), exact(n, arena), sums(n, arena) {
    for (auto& head : maps) head.place(n, arena, true);
    for (auto& head : totals) head.place(n, arena);
    inputs = arena.take<T>(kHeads * kRow<T>);
    outputs = arena.take<T>(n.channels * kHeads * kRow<T>);
    of_inputs = arena.take<T>(kHeads * kRow<T>);
    states = arena.take<T>((kTile / n.steps + 1) * n.width);
    of_states = arena.take<T>((kTile / n.steps + 1) * n.width);
    carried = arena.take<T>(kHeads * n.width);
    starts = arena.take<T>((scan.length + kTile - 1) / kTile * kHeads * n.width);
    bytes = arena.used;
  }

  void make(const Scan<T>& scan, int64_t head) {
    const int64_t count = n.groups * n.size;
    exact.make(
        n, scan.transition + head * count * n.size, scan.b + head * count, scan.c + head * n.channels * count, nullptr,
        0);
  }

  void run(const Scan<T>& scan, const ScanGradient<T>& gradient, int64_t first) {
    const int64_t heads = scan.heads - first < kHeads ? scan.heads - first : kHeads;
    const int64_t count = n.groups * n.size, chunks = scan.length / n.steps, tail = scan.length % n.steps;
    for (int64_t h = 0; h < heads; ++h) {
      make(scan, first + h);
      if (scan.skip != nullptr)
        for (int64_t r = 0; r < n.channels; ++r) exact.kernel[r * n.steps] += scan.skip[r * scan.heads + first + h];
      maps[h].make(n, exact, chunks, tail, true);
      totals[h].clear(n);
    }
    for (int64_t b = 0; b < scan.batch; ++b) {
      const int64_t at = (b * scan.heads + first) * count;
      for (int64_t h = 0; h < heads; ++h) load_vector(n, scan.state + at + h * count, starts + h * n.width);
      for (int64_t start = 0; start + kTile < scan.length; start += kTile) advance(scan, first, heads, b, start);
      for (int64_t h = 0; h < heads; ++h) load_vector(n, gradient.last + at + h * count, carried + h * n.width);
      for (int64_t start = (scan.length - 1) / kTile * kTile; start >= 0; start -= kTile)
        tile(scan, gradient, first, heads, b, start);
      for (int64_t h = 0; h < heads; ++h) store_vector(n, carried + h * n.width, gradient.state + at + h * count);
    }
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t head = first + h;
      make(scan, head);
      totals[h].to(n, sums);
      if (gradient.skip != nullptr)
        for (int64_t r = 0; r < n.channels; ++r) gradient.skip[r * scan.heads + head] = sums.kernel[r * n.steps];
      sums.finish(n, exact, chunks, tail);
      store_matrix(n, sums.matrix, gradient.transition + head * count * n.size);
      store_vector(n, sums.responses, gradient.b + head * count);
      for (int64_t r = 0; r < n.channels; ++r)
        store_vector(
            n, sums.readouts + r * (n.vectors() + n.width), gradient.c + (head * n.channels + r) * count);
    }
  }

  T* start_of(int64_t start) const { return starts + start / kTile * kHeads * n.width; }

  void load_inputs(const Scan<T>& scan, int64_t first, int64_t heads, int64_t b, int64_t start, int64_t length) {
    const Strides& in = scan.inputs_at;
    const T* from = scan.inputs + b * in.batch + first * in.head + start * in.time;
    pack(from, in.head, in.time, heads, length, round_up(length, n.steps), inputs);
  }

  void advance(const Scan<T>& scan, int64_t first, int64_t heads, int64_t b, int64_t start) {
    load_inputs(scan, first, heads, b, start, kTile);
    const int64_t chunks = kTile / n.steps;
    for (int64_t h = 0; h < heads; ++h) {
      copy(states, start_of(start) + h * n.width, n.width);
      run_states(n, maps[h], inputs + h * kRow<T>, chunks, 0, states);
      copy(start_of(start + kTile) + h * n.width, states + chunks * n.width, n.width);
    }
  }

  void tile(
      const Scan<T>& scan, const ScanGradient<T>& gradient, int64_t first, int64_t heads, int64_t b, int64_t start) {
    const int64_t left = scan.length - start, length = left < kTile ? left : kTile;
    const int64_t chunks = length / n.steps, tail = length % n.steps, rows = chunks + (tail > 0);
    load_inputs(scan, first, heads, b, start, length);
    const Strides &out = gradient.outputs_at, &in = gradient.inputs_at;
    for (int64_t r = 0; r < n.channels; ++r)
      pack(
          gradient.outputs + b * out.batch + r * out.channel + first * out.head + start * out.time, out.head, out.time,
          heads, length, rows * n.steps, outputs + r * kHeads * kRow<T>);
    for (int64_t h = 0; h < heads; ++h) {
      copy(states, start_of(start) + h * n.width, n.width);
      run_states(n, maps[h], inputs + h * kRow<T>, chunks, tail, states);
      run_back(h, chunks, tail);
      add_totals(h, chunks, tail);
      copy(carried + h * n.width, of_states, n.width);
    }
    unpack(
        of_inputs, heads, length, gradient.inputs + b * in.batch + first * in.head + start * in.time, in.head, in.time);
  }

  // gradients of the states before each chunk, from that of the last state, and of the inputs
  void run_back(int64_t h, int64_t chunks, int64_t tail) {
    const int64_t steps = n.steps, width = n.width, rows = chunks + (tail > 0);
    const HeadMaps<T>& map = maps[h];
    T* of_u = of_inputs + h * kRow<T>;
    for (int64_t r = 0; r < n.channels; ++r) {
      const T* y = outputs + (r * kHeads + h) * kRow<T>;
      const T *readouts = map.outputs_t + r * n.vectors(), *toeplitz = map.toeplitz_t + r * steps * steps;
      product<T>({rows, width, steps, y, steps, 1, readouts, width, of_states, width, r > 0});
      product<T>({rows, steps, steps, y, steps, 1, toeplitz, steps, of_u, steps, r > 0});
    }
    copy(of_states + rows * width, carried + h * width, width);
    if (tail > 0) {
      const T *next = of_states + rows * width, *late = map.inputs + (steps - tail) * width;
      apply(n, map.tail_leap_t, next, of_states + chunks * width, true);
      for (int64_t j = 0; j < tail; ++j) of_u[chunks * steps + j] += dot(late + j * width, next, width);
    }
    for (int64_t k = chunks - 1; k >= 0; --k)
      apply(n, map.leap_t, of_states + (k + 1) * width, of_states + k * width, true);
    product<T>({chunks, steps, width, of_states + width, width, 1, map.inputs_t, steps, of_u, steps, true});
  }

  void add_totals(int64_t h, int64_t chunks, int64_t tail) {
    const int64_t steps = n.steps, width = n.width, rows = chunks + (tail > 0);
    HeadGradients<T>& total = totals[h];
    const T *u = inputs + h * kRow<T>, *next = of_states + width;
    product<T>({steps, width, chunks, u, 1, steps, next, width, total.inputs, width, true});
    add_outer(n, next, states, chunks, total.leap);
    if (tail > 0) {
      const T* last = of_states + rows * width;
      T* late = total.inputs + (steps - tail) * width;
      product<T>({tail, width, 1, u + chunks * steps, 1, steps, last, width, late, width, true});
      add_outer(n, last, states + chunks * width, 1, total.tail_leap);
    }
    for (int64_t r = 0; r < n.channels; ++r) {
      const T* y = outputs + (r * kHeads + h) * kRow<T>;
      T *readouts = total.outputs_t + r * n.vectors(), *toeplitz = total.toeplitz_t + r * steps * steps;
      product<T>({steps, width, rows, y, 1, steps, states, width, readouts, width, true});
      product<T>({steps, steps, rows, y, 1, steps, u, steps, toeplitz, steps, true});
    }
  }
};

}  // namespace S4_ISA
}  // namespace s4
