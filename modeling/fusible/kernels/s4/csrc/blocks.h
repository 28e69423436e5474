// Block-diagonal matrices and the maps that a chunk of steps of `x <- A x + b u`, `y = c x` consists of.
//
// Entry (i, j) of the block of group g is at `j * width + i * lane + g`: vectors run over groups. A single block is
// dense, has lane 1, and its vectors run over i. Vectors of states are laid out like one column. Padding is zero.
#pragma once

#include "simd.h"

namespace s4 {
namespace S4_ISA {

// In a chunk: for pairs of modes, `2 * width + steps + 4 * width / steps` products for each step. A dense matrix has
// `2 * width + steps + width * width / steps`, and the fewer leaps, the less is rounded.
constexpr int64_t kSteps = 32, kDenseSteps = 64;

struct Layout {
  int64_t groups, size, channels, lane, width, steps;
  bool dense;

  Layout(int64_t groups, int64_t size, int64_t channels, int64_t length, int64_t lanes)
      : groups(groups), size(size), channels(channels), dense(groups == 1) {
    lane = dense ? 1 : round_up(groups, lanes);
    width = dense ? round_up(size, lanes) : size * lane;
    const int64_t most = dense && size > 16 ? kDenseSteps : kSteps;
    steps = length < most ? round_up(length, 16) : most;
  }
  int64_t matrix() const { return size * width; }
  int64_t vectors() const { return steps * width; }
};

// from `[groups, size]`, or `[groups, size, size]` column by column
template <typename T, typename U>
void load_vector(const Layout& n, const U* from, T* to) {
  fill(to, n.width, T(0));
  for (int64_t g = 0; g < n.groups; ++g)
    for (int64_t i = 0; i < n.size; ++i) to[i * n.lane + g] = static_cast<T>(from[g * n.size + i]);
}

template <typename T, typename U>
void store_vector(const Layout& n, const T* from, U* to) {
  for (int64_t g = 0; g < n.groups; ++g)
    for (int64_t i = 0; i < n.size; ++i) to[g * n.size + i] = static_cast<U>(from[i * n.lane + g]);
}

inline void load_matrix(const Layout& n, const double* from, double* to) {
  fill(to, n.matrix(), 0.0);
  for (int64_t g = 0; g < n.groups; ++g)
    for (int64_t i = 0; i < n.size; ++i)
      for (int64_t j = 0; j < n.size; ++j) to[j * n.width + i * n.lane + g] = from[(g * n.size + i) * n.size + j];
}

inline void store_matrix(const Layout& n, const double* from, double* to) {
  for (int64_t g = 0; g < n.groups; ++g)
    for (int64_t i = 0; i < n.size; ++i)
      for (int64_t j = 0; j < n.size; ++j) to[(g * n.size + i) * n.size + j] = from[j * n.width + i * n.lane + g];
}

template <typename T>
void transpose(const Layout& n, const T* matrix, T* to) {
  fill(to, n.matrix(), T(0));
  for (int64_t j = 0; j < n.size; ++j)
    for (int64_t i = 0; i < n.size; ++i)
      for (int64_t g = 0; g < n.lane; ++g) to[j * n.width + i * n.lane + g] = matrix[i * n.width + j * n.lane + g];
}

// `out (+)= matrix @ x`
template <typename T>
inline void apply(const Layout& n, const T* matrix, const T* x, T* out, bool add) {
  if (n.dense) {
    product<T>({1, n.width, n.size, x, 0, 1, matrix, n.width, out, n.width, add});
    return;
  }
  constexpr int64_t lanes = Vector<T>::lanes;
  for (int64_t g = 0; g < n.lane; g += lanes) {
    if (n.size == 2) {
      const auto first = load(x + g), second = load(x + n.lane + g);
      const T* m = matrix + g;
      auto top = load(m) * first + load(m + n.width) * second;
      auto bottom = load(m + n.lane) * first + load(m + n.width + n.lane) * second;
      if (add) top += load(out + g), bottom += load(out + n.lane + g);
      store(out + g, top);
      store(out + n.lane + g, bottom);
      continue;
    }
    for (int64_t i = 0; i < n.size; ++i) {
      auto sum = add ? load(out + i * n.lane + g) : typename Vector<T>::type{};
      for (int64_t j = 0; j < n.size; ++j)
        sum += load(matrix + j * n.width + i * n.lane + g) * load(x + j * n.lane + g);
      store(out + i * n.lane + g, sum);
    }
  }
}

// `matrix += sum_k rows[k] columns[k]^T` of vectors that follow each other: the gradient of `rows = matrix @ columns`
template <typename T>
void add_outer(const Layout& n, const T* rows, const T* columns, int64_t count, T* matrix) {
  if (n.dense) {
    product<T>({n.size, n.width, count, columns, 1, n.width, rows, n.width, matrix, n.width, true});
    return;
  }
  constexpr int64_t lanes = Vector<T>::lanes;
  for (int64_t j = 0; j < n.size; ++j)
    for (int64_t i = 0; i < n.size; ++i)
      for (int64_t g = 0; g < n.lane; g += lanes) {
        T* to = matrix + j * n.width + i * n.lane + g;
        auto sum = load(to);
        for (int64_t k = 0; k < count; ++k)
          sum += load(rows + k * n.width + i * n.lane + g) * load(columns + k * n.width + j * n.lane + g);
        store(to, sum);
      }
}

inline void multiply(const Layout& n, const double* left, const double* right, double* out, bool add) {
  if (n.dense) {
    product<double>({n.size, n.width, n.size, right, n.width, 1, left, n.width, out, n.width, add});
    return;
  }
  for (int64_t j = 0; j < n.size; ++j) apply(n, left, right + j * n.width, out + j * n.width, add);
}

// `orbit` of pairs, of some of the groups: as many as hide how long a product takes.
template <int chains>
inline void orbit_pairs(const Layout& n, const double* matrix, double* vectors, int64_t count) {
  using V = Vector<double>::type;
  constexpr int64_t lanes = Vector<double>::lanes;
  V a[chains], b[chains], c[chains], d[chains], x[chains], y[chains];
  for (int i = 0; i < chains; ++i) {
    const double* m = matrix + i * lanes;
    a[i] = load(m), b[i] = load(m + n.width), c[i] = load(m + n.lane), d[i] = load(m + n.width + n.lane);
    x[i] = load(vectors + i * lanes), y[i] = load(vectors + n.lane + i * lanes);
  }
  for (int64_t l = 1; l < count; ++l)
    for (int i = 0; i < chains; ++i) {
      const V top = a[i] * x[i] + b[i] * y[i], bottom = c[i] * x[i] + d[i] * y[i];
      store(vectors + l * n.width + i * lanes, x[i] = top);
      store(vectors + l * n.width + n.lane + i * lanes, y[i] = bottom);
    }
}

// From `vectors[0]`, `count - 1` more that follow it, `vectors[l] = matrix^l vectors[0]`.
inline void orbit(const Layout& n, const double* matrix, double* vectors, int64_t count) {
  if (n.size == 2 && !n.dense) {
    constexpr int64_t lanes = Vector<double>::lanes;
    constexpr int chains = S4_BYTES == 64 ? 4 : 2;
    int64_t g = 0;
    for (; g + chains * lanes <= n.lane; g += chains * lanes) orbit_pairs<chains>(n, matrix + g, vectors + g, count);
    for (; g < n.lane; g += lanes) orbit_pairs<1>(n, matrix + g, vectors + g, count);
    return;
  }
  for (int64_t l = 1; l < count; ++l) apply(n, matrix, vectors + (l - 1) * n.width, vectors + l * n.width, false);
}

// The gradient of `orbit` with respect to `vectors[0]`, in `gradients[0]`, and to the other vectors as such, given
// `flipped`, the transposed matrix.
inline void orbit_backward(const Layout& n, const double* flipped, double* gradients, int64_t count) {
  for (int64_t l = count - 1; l >= 1; --l)
    apply(n, flipped, gradients + l * n.width, gradients + (l - 1) * n.width, true);
}

// Powers on the way to `matrix ** exponent`, which is the last of them, and their number.
constexpr int64_t kTape = 16;

inline int64_t power(const Layout& n, const double* matrix, int64_t exponent, double* tape) {
  int64_t count = 0, bit = 1;
  copy(tape, matrix, n.matrix());
  while (bit * 2 <= exponent) bit *= 2;
  for (bit /= 2; bit > 0; bit /= 2) {
    const double* last = tape + count * n.matrix();
    multiply(n, last, last, tape + ++count * n.matrix(), false);
    if (exponent & bit) {
      multiply(n, tape + count * n.matrix(), matrix, tape + (count + 1) * n.matrix(), false);
      ++count;
    }
  }
  return count + 1;
}

// Adds to `total` the gradient of `power`, given that of its result, which is overwritten. `spare`: two matrices.
inline void power_backward(
    const Layout& n, const double* matrix, int64_t exponent, const double* tape, double* gradient, double* spare,
    double* total) {
  int64_t bits[kTape], count = 0, bit = 1;
  while (bit * 2 <= exponent) bit *= 2;
  for (bit /= 2; bit > 0; bit /= 2) {
    bits[count++] = 0;
    if (exponent & bit) bits[count++] = 1;
  }
  double* flipped = spare + n.matrix();
  while (count-- > 0) {
    const double* base = tape + count * n.matrix();
    transpose(n, base, flipped);
    if (bits[count]) {
      multiply(n, flipped, gradient, total, true);
      transpose(n, matrix, flipped);
      multiply(n, gradient, flipped, spare, false);
    } else {
      multiply(n, flipped, gradient, spare, false);
      multiply(n, gradient, flipped, spare, true);
    }
    copy(gradient, spare, n.matrix());
  }
  for (int64_t i = 0; i < n.matrix(); ++i) total[i] += gradient[i];
}

}  // namespace S4_ISA
}  // namespace s4
