// Kernels of sums of poles, for GPUs.
#pragma once

#include <cstdint>

namespace s4 {

constexpr int kNodes = 128, kStates = 8;  // threads of sums of poles, and states whose gradients they share

// Sums of poles of one head, at one node for each thread: see cauchy.h for the formulas.
template <typename T>
struct Poles {
  const T *weights, *states, *nodes;  // [heads, 2, ins, outs, state], [heads, 4, state], [5, count]
  int64_t state, ins, outs, count;

  __device__ int64_t rows() const { return ins * outs; }
};

template <typename T>
struct PoleSums {
  Poles<T> p;
  int64_t thread, place;
  T c_high, c_low, s_high, s_low, both, c, s;
  T *table, *scales;  // [rows, 2, nodes], [ins - 1, 2, nodes]

  __device__ PoleSums(Poles<T> poles, int64_t head, int64_t tile, T* memory) : p(poles), thread(threadIdx.x) {
    p.weights += head * 2 * p.rows() * p.state, p.states += head * 4 * p.state;
    place = tile * kNodes + thread;
    // nodes after the last one are like it
    const T* node = p.nodes + (place < p.count ? place : p.count - 1);
    c_high = node[0], c_low = node[p.count], s_high = node[2 * p.count], s_low = node[3 * p.count];
    both = node[4 * p.count], c = c_high + c_low, s = s_high + s_low;
    table = memory, scales = memory + p.rows() * 2 * kNodes;
  }

  __device__ T* entry(T* of, int64_t in, int64_t out) const { return of + (in * p.outs + out) * 2 * kNodes + thread; }

  __device__ void quotient(int64_t n, T& g, T& h) const {
    const T size = p.states[n], low = p.states[p.state + n], decay = p.states[2 * p.state + n];
    const T scale = p.states[3 * p.state + n];
    const T near = size * c_high - s_high + (low * c + size * c_low - s_low);
    const T a = (near * scale) * ((near + 2 * s) * scale), b = decay * both, inverse = 1 / (a * a + b * b);
    g = a * inverse, h = b * inverse;
  }

  __device__ void run() {
    for (int64_t first = 0; first < p.rows(); first += 4) {
      T re[4] = {}, im[4] = {};
      for (int64_t n = 0; n < p.state; ++n) {
        T g, h;
        quotient(n, g, h);
        for (int q = 0; q < 4; ++q) {
          const int64_t r = first + q < p.rows() ? first + q : p.rows() - 1;
          const T of_both = p.weights[r * p.state + n], of_real = p.weights[(p.rows() + r) * p.state + n];
          re[q] += of_both * (c * g) + of_real * (s * h);
          im[q] += of_real * (s * g) - of_both * (c * h);
        }
      }
      for (int q = 0; q < 4 && first + q < p.rows(); ++q) {
        T* to = table + (first + q) * 2 * kNodes + thread;
        to[0] = re[q], to[kNodes] = im[q];
      }
    }
    const int64_t channels = p.outs - p.ins + 1;
    for (int64_t last = p.ins - 1; last > 0; --last) {
      const int64_t columns = channels + last - 1;
      const T *pivot = entry(table, last, columns), x = 1 + c * pivot[0], y = c * pivot[kNodes];
      const T by = c / (x * x + y * y), by_re = x * by, by_im = -y * by;
      T* scale = scales + (last - 1) * 2 * kNodes + thread;
      scale[0] = by_re, scale[kNodes] = by_im;
      for (int64_t in = 0; in < last; ++in) {
        const T* left = entry(table, in, columns);
        const T re = left[0] * by_re - left[kNodes] * by_im, im = left[0] * by_im + left[kNodes] * by_re;
        for (int64_t out = 0; out < columns; ++out) {
          const T* right = entry(table, last, out);
          T* to = entry(table, in, out);
          to[0] -= re * right[0] - im * right[kNodes];
          to[kNodes] -= re * right[kNodes] + im * right[0];
        }
      }
    }
  }

  // The gradient of the sums, in `of`, given that of the spectrum of this head.
  __device__ void run_back(const T* gradient, T* of) {
    const int64_t channels = p.outs - p.ins + 1;
    for (int64_t r = 0; r < p.rows(); ++r) {
      T* to = of + r * 2 * kNodes + thread;
      to[0] = to[kNodes] = 0;
      if (r >= channels || place >= p.count) continue;
      const T *from = gradient + (r * p.count + place) * 2, re = from[0], im = from[1];
      to[0] = c * re + s / 2 * im, to[kNodes] = c * im - s / 2 * re;
    }
    for (int64_t last = 1; last < p.ins; ++last) {
      const int64_t columns = channels + last - 1;
      const T* scale = scales + (last - 1) * 2 * kNodes + thread;
      const T by_re = scale[0], by_im = scale[kNodes];
      T of_re = 0, of_im = 0;
      for (int64_t in = 0; in < last; ++in) {
        const T* column = entry(table, in, columns);
        T* of_column = entry(of, in, columns);
        for (int64_t out = 0; out < columns; ++out) {
          const T *row = entry(table, last, out), *at = entry(of, in, out);
          T* of_row = entry(of, last, out);
          const T re = at[0] * by_re + at[kNodes] * by_im, im = at[kNodes] * by_re - at[0] * by_im;
          of_column[0] -= re * row[0] + im * row[kNodes], of_column[kNodes] -= im * row[0] - re * row[kNodes];
          of_row[0] -= re * column[0] + im * column[kNodes], of_row[kNodes] -= im * column[0] - re * column[kNodes];
          const T both_re = column[0] * row[0] - column[kNodes] * row[kNodes];
          const T both_im = column[0] * row[kNodes] + column[kNodes] * row[0];
          of_re -= at[0] * both_re + at[kNodes] * both_im, of_im -= at[kNodes] * both_re - at[0] * both_im;
        }
      }
      const T square_re = by_re * by_re - by_im * by_im, square_im = 2 * by_re * by_im;
      T* of_pivot = entry(of, last, columns);
      of_pivot[0] -= of_re * square_re + of_im * square_im, of_pivot[kNodes] -= of_im * square_re - of_re * square_im;
    }
  }
};

template <typename T>
__global__ void pole_sums_kernel(T* spectrum, Poles<T> poles) {
  S4_SHARED(T, memory);
  const int64_t head = blockIdx.y, channels = poles.outs - poles.ins + 1;
  PoleSums<T> sums(poles, head, blockIdx.x, memory);
  sums.run();
  if (sums.place >= poles.count) return;
  for (int64_t r = 0; r < channels; ++r) {
    const T *from = sums.entry(sums.table, 0, r), s = sums.s / 2;
    T* to = spectrum + ((head * channels + r) * poles.count + sums.place) * 2;
    to[0] = sums.c * from[0] - s * from[kNodes], to[1] = sums.c * from[kNodes] + s * from[0];
  }
}

// Of the weights `[heads, tiles, 2, rows, state]` and, `[heads, tiles, 2, state]`, of the squared size and the decay.
template <typename T>
__global__ void pole_sums_backward_kernel(T* of_weights, T* of_states, const T* gradient, Poles<T> poles) {
  S4_SHARED(T, memory);
  const int64_t head = blockIdx.y, rows = poles.rows(), thread = threadIdx.x;
  PoleSums<T> sums(poles, head, blockIdx.x, memory);
  const Poles<T>& p = sums.p;
  T *of = sums.scales + (p.ins - 1) * 2 * kNodes, *angles = of + rows * 2 * kNodes, *stage = angles + 2 * kNodes;
  sums.run();
  sums.run_back(gradient + head * (p.outs - p.ins + 1) * p.count * 2, of);
  angles[thread] = sums.c, angles[kNodes + thread] = sums.s;
  const int64_t slot = head * gridDim.x + blockIdx.x;
  of_weights += slot * 2 * rows * p.state, of_states += slot * 2 * p.state;
  for (int64_t first = 0; first < p.state; first += kStates) {
    const int64_t count = p.state - first < kStates ? p.state - first : kStates;
    for (int64_t q = 0; q < count; ++q) {
      const int64_t n = first + q;
      T g, h, of_g = 0, of_h = 0;
      sums.quotient(n, g, h);
      for (int64_t r = 0; r < rows; ++r) {
        const T re = of[r * 2 * kNodes + thread], im = of[(r * 2 + 1) * kNodes + thread];
        const T of_both = p.weights[r * p.state + n], of_real = p.weights[(rows + r) * p.state + n];
        of_g += of_both * (sums.c * re) + of_real * (sums.s * im);
        of_h += of_real * (sums.s * re) - of_both * (sums.c * im);
      }
      const T even = h * h - g * g, odd = 2 * g * h;
      T* to = stage + q * 4 * kNodes + thread;
      to[0] = g, to[kNodes] = h, to[2 * kNodes] = (of_g * even - of_h * odd) * (sums.c * sums.c);
      to[3 * kNodes] = -(of_g * odd + of_h * even) * sums.both;
    }
    __syncthreads();
    for (int64_t e = thread; e < count * (rows + 2); e += kNodes) {
      const int64_t q = e / (rows + 2), r = e % (rows + 2), n = first + q;
      const T* from = stage + q * 4 * kNodes;
      if (r < rows) {
        T of_both = 0, of_real = 0;
        for (int t = 0; t < kNodes; ++t) {
          const T re = of[r * 2 * kNodes + t], im = of[(r * 2 + 1) * kNodes + t], g = from[t], h = from[kNodes + t];
          of_both += angles[t] * (re * g - im * h), of_real += angles[kNodes + t] * (re * h + im * g);
        }
        of_weights[r * p.state + n] = of_both, of_weights[(rows + r) * p.state + n] = of_real;
      } else {
        const int64_t part = r - rows;
        T total = 0;
        for (int t = 0; t < kNodes; ++t) total += from[(2 + part) * kNodes + t];
        of_states[part * p.state + n] = total;
      }
    }
    __syncthreads();
  }
}

}  // namespace s4
