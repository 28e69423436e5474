// What the scan's files share: plain views of tensors, and one table of functions for each instruction set.
#pragma once

#include <cstdint>

namespace s4 {

constexpr int64_t kHeads = 16;   // heads that a thread works on at a time: a cache line of inputs with heads innermost
constexpr int64_t kTile = 512;   // steps between changes of the head, whose maps then come from the second cache again

struct Strides {
  int64_t batch, channel, head, time;
};

// `x_l = A x_{l-1} + b u_l`, `y_l = c x_l + skip u_l`; parameters are contiguous and in double precision.
template <typename T>
struct Scan {
  int64_t batch, heads, length, channels, groups, size;
  const double *transition, *b, *c, *skip;  // [heads, groups, size(, size)], [heads, channels, ...], [channels, heads]
  const T *inputs, *state;                  // [batch, heads, length], contiguous [batch, heads, groups, size]
  Strides inputs_at, outputs_at;
  T *outputs, *last;                        // [batch, channels, heads, length], like state
  bool gelu;                                // of the outputs
};

template <typename T>
struct ScanGradient {
  const T *outputs, *last;  // with respect to these
  Strides outputs_at, inputs_at;
  T *inputs, *state;
  double *transition, *b, *c, *skip;
};

template <typename T>
struct ScanFunctions {
  int64_t (*scratch)(const Scan<T>&);
  void (*forward)(const Scan<T>&, int64_t first_head, int64_t first, int64_t end, void* scratch);
  int64_t (*backward_scratch)(const Scan<T>&);
  void (*backward)(const Scan<T>&, const ScanGradient<T>&, int64_t first_head, void* scratch);
};

// One step in place, `x <- x + (increment + tail) x - left right^T x + b u`, with parameters in the precision of the
// inputs; all contiguous. Blocks `[[p, -q], [q, p]]` are p and q.
template <typename T>
struct Step {
  int64_t batch, heads, channels, groups, rank;
  int64_t tile;                                       // heads whose parameters stay in the first cache
  const T *increment, *tail, *b, *c, *skip, *inputs;  // tail and skip may be null
  const T *left, *right;                              // [heads, rank, groups, 2]
  T *outputs, *state;                                 // [batch, channels, heads], [batch, heads, groups, 2]
};

// `K[h, r, l] = 2 Re sum_n coefficients[h, r, n] * base[h, n] ** l`
template <typename T>
struct Powers {
  int64_t heads, rows, state, length;
  const double *coefficients, *base;  // complex: [heads, rows, state], [heads, state]
  T* kernel;                          // [heads, rows, length]
  const T* gradient;
  double *of_coefficients, *of_base;
};

template <typename T>
struct PowersFunctions {
  int64_t (*scratch)(const Powers<T>&);
  void (*forward)(const Powers<T>&, int64_t head, void* scratch);
  void (*backward)(const Powers<T>&, int64_t head, void* scratch);
};

// Spectra of kernels of systems with a low-rank part, at the first `count` nodes `exp(-2 pi i k / length)`.
template <typename T>
struct Cauchy {
  int64_t heads, rank, channels, state, count;
  const double *inputs, *outputs, *poles;  // complex: [heads, 1 + rank, state], [heads, channels + rank, state], ...
  const double *cosines, *sines;           // of half the nodes' angles
  T* spectrum;                             // complex [heads, channels, count]
  const T* gradient;
  double *of_inputs, *of_outputs, *of_poles;
};

template <typename T>
struct CauchyFunctions {
  int64_t (*scratch)(const Cauchy<T>&);
  void (*forward)(const Cauchy<T>&, int64_t head, void* scratch);
  void (*backward)(const Cauchy<T>&, int64_t head, void* scratch);
};

template <typename T>
struct Functions {
  ScanFunctions<T> scan;
  PowersFunctions<T> powers;
  CauchyFunctions<T> cauchy;
  void (*step)(const Step<T>&, int64_t begin, int64_t end, void* scratch);
};

struct Table {
  Functions<float> single;
  Functions<double> twice;
};

namespace avx512 {
const Table& table();
}
namespace avx2 {
const Table& table();
}
namespace baseline {
const Table& table();
}

}  // namespace s4
