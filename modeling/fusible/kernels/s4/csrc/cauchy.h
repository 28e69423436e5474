// Sums of poles at the nodes `z = exp(-2 pi i k / length)`, combined to the spectrum of one head's kernels; gradients.
//
// With c and s the cosine and sine of half a node's angle, a state and its conjugate add
// `(-2 c Re(v conj(w)) + 4 i s Re(v)) / (A + i B)`, `A = |w|^2 c^2 - 4 s^2`, `B = -4 s c Re(w)`, to a sum of poles.
// The quotients are shared by all products v: the sums are a product of matrices, tile by tile of nodes.
#pragma once

#include "maps.h"
#include "scan.h"

namespace s4 {
namespace S4_ISA {

constexpr int64_t kNodes = 64;  // in a tile

// Rows of `sums[r][n]`, vectors, `+= left[r][k] * right[n][k]` over the k of a tile.
template <typename T, int rows, int columns>
inline void correlate_block(const T* left, const T* right, int64_t row_length, T* sums, int64_t state) {
  using V = typename Vector<T>::type;
  constexpr int64_t lanes = Vector<T>::lanes;
  V totals[rows][columns];
  for (int r = 0; r < rows; ++r)
    for (int n = 0; n < columns; ++n) totals[r][n] = load(sums + (r * state + n) * lanes);
  for (int64_t k = 0; k < row_length; k += lanes) {
    V values[columns];
    for (int n = 0; n < columns; ++n) values[n] = load(right + n * row_length + k);
    for (int r = 0; r < rows; ++r) {
      const V factor = load(left + r * row_length + k);
      for (int n = 0; n < columns; ++n) totals[r][n] += factor * values[n];
    }
  }
  for (int r = 0; r < rows; ++r)
    for (int n = 0; n < columns; ++n) store(sums + (r * state + n) * lanes, totals[r][n]);
}

// complex numbers of the nodes of a tile
template <typename T>
struct Nodes {
  T *re, *im;
};

template <typename T>
struct CauchySums {
  static constexpr int64_t lanes = Vector<T>::lanes, wide = 2 * kNodes;

  const Cauchy<T>& p;
  int64_t outs, rows;                           // columns of a table, and its entries
  T *size, *size_low, *decay, *scale;           // [state]: |w| in two parts, -Re(w) and its power of two
  T *weights;                                   // [2 * rows, state]: of Re(v conj(w)), then of Re(v)
  T *cosine, *cosine_low, *sine, *sine_low, *both;  // [nodes]: c, 2 s, 4 s c
  T *quotients, *sums, *table, *scales;         // [state, 2, nodes], [2 * rows, 2, nodes], [rows, 2, nodes], [rank, ...]
  T *of_quotients, *of_sums, *of_table, *of_scale, *of_weights;  // the last: vectors, [2 * rows, state]
  double *of_size, *of_decay;
  int64_t bytes;

  CauchySums(const Cauchy<T>& cauchy, Arena& arena, bool backward)
      : p(cauchy), outs(p.channels + p.rank), rows((1 + p.rank) * outs) {
    T** const of_states[] = {&size, &size_low, &decay, &scale};
    for (T** part : of_states) *part = arena.take<T>(p.state);
    T** const of_nodes[] = {&cosine, &cosine_low, &sine, &sine_low, &both};
    for (T** part : of_nodes) *part = arena.take<T>(kNodes);
    weights = arena.take<T>(2 * rows * p.state);
    quotients = arena.take<T>(p.state * wide);
    sums = arena.take<T>(2 * rows * wide);
    table = arena.take<T>(rows * wide);
    scales = arena.take<T>(p.rank * wide);
    if (backward) {
      of_quotients = arena.take<T>(p.state * wide);
      of_sums = arena.take<T>(2 * rows * wide);
      of_table = arena.take<T>(rows * wide);
      of_scale = arena.take<T>(wide);
      of_weights = arena.take<T>(2 * rows * p.state * lanes);
      of_size = arena.take<double>(p.state);
      of_decay = arena.take<double>(p.state);
    }
    bytes = arena.used;
  }

  Nodes<T> entry(T* of, int64_t in, int64_t out) const {
    T* at = of + (in * outs + out) * wide;
    return {at, at + kNodes};
  }

  // A power of two that keeps the squares of quotients and of their inverses in the range of float.
  static double power_of(double size) {
    int exponent;
    __builtin_frexp(size > 2 ? size : 2, &exponent);
    return __builtin_ldexp(1, 28 - exponent);
  }

  static double product_of(const double* in, const double* out, double* imaginary) {
    *imaginary = in[0] * out[1] + in[1] * out[0];
    return in[0] * out[0] - in[1] * out[1];
  }

  const double* input(int64_t head, int64_t in) const { return p.inputs + 2 * (head * (1 + p.rank) + in) * p.state; }
  const double* output(int64_t head, int64_t out) const { return p.outputs + 2 * (head * outs + out) * p.state; }

  void prepare(int64_t head) {
    for (int64_t n = 0; n < p.state; ++n) {
      const double *w = p.poles + 2 * (head * p.state + n), length = __builtin_sqrt(w[0] * w[0] + w[1] * w[1]);
      const double power = power_of(length);
      size[n] = static_cast<T>(length), size_low[n] = static_cast<T>(length - size[n]);
      scale[n] = static_cast<T>(power), decay[n] = static_cast<T>(-w[0] * power * power);
      for (int64_t r = 0; r < rows; ++r) {
        double im;
        const double re = product_of(input(head, r / outs) + 2 * n, output(head, r % outs) + 2 * n, &im);
        weights[r * p.state + n] = static_cast<T>(-2 * (re * w[0] + im * w[1]) * power * power);
        weights[(rows + r) * p.state + n] = static_cast<T>(2 * re * power * power);
      }
    }
  }

  // Leaves the table of sums as elimination does: used rows and columns as they were before they were used.
  void run(int64_t first) {
    for (int64_t i = 0; i < kNodes; ++i) {
      // nodes after the last one are like it
      const int64_t k = first + i < p.count ? first + i : p.count - 1;
      const double c = p.cosines[k], s = 2 * p.sines[k];
      cosine[i] = static_cast<T>(c), cosine_low[i] = static_cast<T>(c - cosine[i]);
      sine[i] = static_cast<T>(s), sine_low[i] = static_cast<T>(s - sine[i]);
      both[i] = static_cast<T>(2 * s * c);
    }
    for (int64_t n = 0; n < p.state; ++n) {
      T* to = quotients + n * wide;
      for (int64_t i = 0; i < kNodes; i += lanes) {
        const auto c = load(cosine + i), s = load(sine + i);
        // the difference is small near a pole; the parts that float has no room for make it exact
        auto near = size[n] * c - s;
        if (sizeof(T) == 4) near += size_low[n] * c + size[n] * load(cosine_low + i) - load(sine_low + i);
        const auto a = (near * scale[n]) * ((near + 2 * s) * scale[n]), b = decay[n] * load(both + i);
        const auto inverse = 1 / (a * a + b * b);
        store(to + i, a * inverse);
        store(to + kNodes + i, b * inverse);
      }
    }
    product<T>({2 * rows, wide, p.state, weights, p.state, 1, quotients, wide, sums, wide, false});
    for (int64_t r = 0; r < rows; ++r) {
      const T *of_both = sums + r * wide, *of_real = sums + (rows + r) * wide;
      T* to = table + r * wide;
      for (int64_t i = 0; i < kNodes; ++i) {
        to[i] = cosine[i] * of_both[i] + sine[i] * of_real[kNodes + i];
        to[kNodes + i] = sine[i] * of_real[i] - cosine[i] * of_both[kNodes + i];
      }
    }
    // Woodbury's identity, one row of the low-rank part after another
    for (int64_t last = p.rank; last > 0; --last) {
      const int64_t columns = p.channels + last - 1;
      const Nodes<T> pivot = entry(table, last, columns), factor = entry(scales, 0, last - 1);
      for (int64_t i = 0; i < kNodes; ++i) {
        const T re = 1 + cosine[i] * pivot.re[i], im = cosine[i] * pivot.im[i], by = cosine[i] / (re * re + im * im);
        factor.re[i] = re * by, factor.im[i] = -im * by;
      }
      for (int64_t in = 0; in < last; ++in) {
        const Nodes<T> left = entry(table, in, columns);
        for (int64_t out = 0; out < columns; ++out) {
          const Nodes<T> right = entry(table, last, out), to = entry(table, in, out);
          for (int64_t i = 0; i < kNodes; ++i) {
            const T re = left.re[i] * factor.re[i] - left.im[i] * factor.im[i];
            const T im = left.re[i] * factor.im[i] + left.im[i] * factor.re[i];
            to.re[i] -= re * right.re[i] - im * right.im[i];
            to.im[i] -= re * right.im[i] + im * right.re[i];
          }
        }
      }
    }
  }

  void forward(int64_t head) {
    prepare(head);
    for (int64_t first = 0; first < p.count; first += kNodes) {
      run(first);
      const int64_t left = p.count - first, count = left < kNodes ? left : kNodes;
      for (int64_t r = 0; r < p.channels; ++r) {
        const Nodes<T> from = entry(table, 0, r);
        T* to = p.spectrum + 2 * ((head * p.channels + r) * p.count + first);
        for (int64_t i = 0; i < count; ++i) {
          const T c = cosine[i], s = sine[i] / 2;
          to[2 * i] = c * from.re[i] - s * from.im[i];
          to[2 * i + 1] = c * from.im[i] + s * from.re[i];
        }
      }
    }
  }

  // The gradient of the sums, given that of the spectrum.
  void run_back(int64_t head, int64_t first) {
    const int64_t left = p.count - first, count = left < kNodes ? left : kNodes;
    fill(of_table, rows * wide, T(0));
    for (int64_t r = 0; r < p.channels; ++r) {
      const Nodes<T> to = entry(of_table, 0, r);
      const T* from = p.gradient + 2 * ((head * p.channels + r) * p.count + first);
      for (int64_t i = 0; i < count; ++i) {
        const T c = cosine[i], s = sine[i] / 2;
        to.re[i] = c * from[2 * i] + s * from[2 * i + 1];
        to.im[i] = c * from[2 * i + 1] - s * from[2 * i];
      }
    }
    for (int64_t last = 1; last <= p.rank; ++last) {
      const int64_t columns = p.channels + last - 1;
      const Nodes<T> factor = entry(scales, 0, last - 1), of_pivot = entry(of_table, last, columns);
      T *of_re = of_scale, *of_im = of_scale + kNodes;
      fill(of_scale, wide, T(0));
      for (int64_t in = 0; in < last; ++in) {
        const Nodes<T> column = entry(table, in, columns), of_column = entry(of_table, in, columns);
        for (int64_t out = 0; out < columns; ++out) {
          const Nodes<T> row = entry(table, last, out), of_row = entry(of_table, last, out);
          const Nodes<T> of = entry(of_table, in, out);
          for (int64_t i = 0; i < kNodes; ++i) {
            const T re = of.re[i] * factor.re[i] + of.im[i] * factor.im[i];
            const T im = of.im[i] * factor.re[i] - of.re[i] * factor.im[i];
            of_column.re[i] -= re * row.re[i] + im * row.im[i];
            of_column.im[i] -= im * row.re[i] - re * row.im[i];
            of_row.re[i] -= re * column.re[i] + im * column.im[i];
            of_row.im[i] -= im * column.re[i] - re * column.im[i];
            const T both_re = column.re[i] * row.re[i] - column.im[i] * row.im[i];
            const T both_im = column.re[i] * row.im[i] + column.im[i] * row.re[i];
            of_re[i] -= of.re[i] * both_re + of.im[i] * both_im;
            of_im[i] -= of.im[i] * both_re - of.re[i] * both_im;
          }
        }
      }
      for (int64_t i = 0; i < kNodes; ++i) {
        const T re = factor.re[i] * factor.re[i] - factor.im[i] * factor.im[i];
        const T im = 2 * factor.re[i] * factor.im[i];
        of_pivot.re[i] -= of_re[i] * re + of_im[i] * im;
        of_pivot.im[i] -= of_im[i] * re - of_re[i] * im;
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      const T* from = of_table + r * wide;
      T *of_both = of_sums + r * wide, *of_real = of_sums + (rows + r) * wide;
      for (int64_t i = 0; i < kNodes; ++i) {
        of_both[i] = cosine[i] * from[i], of_both[kNodes + i] = -cosine[i] * from[kNodes + i];
        of_real[i] = sine[i] * from[kNodes + i], of_real[kNodes + i] = sine[i] * from[i];
      }
    }
  }

  void add_weights() {
    for (int64_t r = 0; r < 2 * rows; r += 2) {
      const T* left = of_sums + r * wide;
      T* to = of_weights + r * p.state * lanes;
      int64_t n = 0;
      for (; n + 4 <= p.state; n += 4) correlate_block<T, 2, 4>(left, quotients + n * wide, wide, to + n * lanes, p.state);
      for (; n < p.state; ++n) correlate_block<T, 2, 1>(left, quotients + n * wide, wide, to + n * lanes, p.state);
    }
  }

  // of `1 / (A + i B)`
  void add_poles() {
    product<T>({p.state, wide, 2 * rows, weights, 1, p.state, of_sums, wide, of_quotients, wide, false});
    for (int64_t n = 0; n < p.state; ++n) {
      const T *value = quotients + n * wide, *of = of_quotients + n * wide;
      typename Vector<T>::type sizes{}, decays{};
      for (int64_t i = 0; i < kNodes; i += lanes) {
        const auto re = load(value + i), im = load(value + kNodes + i), c = load(cosine + i);
        const auto of_re = load(of + i), of_im = load(of + kNodes + i);
        const auto even = im * im - re * re, odd = 2 * re * im;
        sizes += (of_re * even - of_im * odd) * (c * c);
        decays -= (of_re * odd + of_im * even) * load(both + i);
      }
      for (int64_t i = 0; i < lanes; ++i) of_size[n] += sizes[i], of_decay[n] += decays[i];
    }
  }

  double of_weight(int64_t row, int64_t n) const {
    double total = 0;
    for (int64_t i = 0; i < lanes; ++i) total += of_weights[(row * p.state + n) * lanes + i];
    return total;
  }

  void backward(int64_t head) {
    prepare(head);
    fill(of_weights, 2 * rows * p.state * lanes, T(0));
    fill(of_size, p.state, 0.0);
    fill(of_decay, p.state, 0.0);
    for (int64_t first = 0; first < p.count; first += kNodes) {
      run(first);
      run_back(head, first);
      add_weights();
      add_poles();
    }
    double* of_in = p.of_inputs + 2 * head * (1 + p.rank) * p.state;
    double* of_out = p.of_outputs + 2 * head * outs * p.state;
    fill(of_in, 2 * (1 + p.rank) * p.state, 0.0);
    fill(of_out, 2 * outs * p.state, 0.0);
    for (int64_t n = 0; n < p.state; ++n) {
      const double* w = p.poles + 2 * (head * p.state + n);
      const double power = static_cast<double>(scale[n]) * scale[n];
      double of_w[2] = {(2 * w[0] * of_size[n] - of_decay[n]) * power, 2 * w[1] * of_size[n] * power};
      for (int64_t r = 0; r < rows; ++r) {
        const double *in = input(head, r / outs) + 2 * n, *out = output(head, r % outs) + 2 * n;
        const double both_ = -2 * power * of_weight(r, n), real = 2 * power * of_weight(rows + r, n);
        double im;
        const double re = product_of(in, out, &im), of_re = both_ * w[0] + real, of_im = both_ * w[1];
        of_w[0] += both_ * re, of_w[1] += both_ * im;
        double *to_in = of_in + 2 * (r / outs * p.state + n), *to_out = of_out + 2 * (r % outs * p.state + n);
        to_in[0] += of_re * out[0] + of_im * out[1], to_in[1] += of_im * out[0] - of_re * out[1];
        to_out[0] += of_re * in[0] + of_im * in[1], to_out[1] += of_im * in[0] - of_re * in[1];
      }
      double* to = p.of_poles + 2 * (head * p.state + n);
      to[0] = of_w[0], to[1] = of_w[1];
    }
  }
};

template <typename T>
int64_t cauchy_scratch(const Cauchy<T>& cauchy) {
  Arena arena(nullptr);
  return CauchySums<T>(cauchy, arena, true).bytes;
}

template <typename T>
void cauchy_forward(const Cauchy<T>& cauchy, int64_t head, void* scratch) {
  Arena arena(scratch);
  CauchySums<T>(cauchy, arena, false).forward(head);
}

template <typename T>
void cauchy_backward(const Cauchy<T>& cauchy, int64_t head, void* scratch) {
  Arena arena(scratch);
  CauchySums<T>(cauchy, arena, true).backward(head);
}

}  // namespace S4_ISA
}  // namespace s4
