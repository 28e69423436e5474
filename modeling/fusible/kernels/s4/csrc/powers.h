// Sums of powers, `2 Re sum_n coefficients[r, n] * base[n] ** l`, of one head, and their gradients.
//
// With l = block * kFine + t the powers are products of two: a product of matrices over t, from coefficients that moved
// on by one block at a time. Powers are made in double precision.
#pragma once

#include "maps.h"
#include "scan.h"

namespace s4 {
namespace S4_ISA {

constexpr int64_t kFine = 64;     // steps in a block
constexpr int64_t kBlocks = 16;   // blocks in a product

// complex numbers as arrays of real and imaginary parts
struct Complexes {
  double *re, *im;

  Complexes(Arena& arena, int64_t count) : re(arena.take<double>(count)), im(arena.take<double>(count)) {}

  void set(int64_t i, double real, double imaginary) const { re[i] = real, im[i] = imaginary; }

  // `self *= other`
  void times(const Complexes& other, int64_t count) const {
    for (int64_t i = 0; i < count; ++i) {
      const double real = re[i] * other.re[i] - im[i] * other.im[i];
      im[i] = re[i] * other.im[i] + im[i] * other.re[i];
      re[i] = real;
    }
  }
};

template <typename T>
struct PowerSums {
  const Powers<T>& p;
  int64_t lane, width, blocks;
  Complexes base, leap, moving;
  T *fine, *rows, *out;       // [2 * lane, kFine] (backward: [kFine, 2 * lane] twice), then left and result of a product
  Complexes sums, slopes;
  int64_t bytes;

  PowerSums(const Powers<T>& powers, Arena& arena)
      : p(powers), lane(round_up(powers.state, Vector<T>::lanes)), width(2 * lane),
        blocks((powers.length + kFine - 1) / kFine), base(arena, lane), leap(arena, lane), moving(arena, lane),
        fine(arena.take<T>(2 * kFine * width)), rows(arena.take<T>(kBlocks * (width + kFine))),
        out(arena.take<T>(kBlocks * (2 * width + kFine))), sums(arena, lane), slopes(arena, lane) {
    bytes = arena.used;
  }

  void load(const Complexes& to, const double* from) const {
    for (int64_t n = 0; n < lane; ++n) to.set(n, n < p.state ? from[2 * n] : 0, n < p.state ? from[2 * n + 1] : 0);
  }

  // Calls `use(t)` with `leap = base ** t` for t < kFine, and leaves `base ** kFine` there.
  template <typename Use>
  void fine_powers(int64_t head, Use use) {
    load(base, p.base + 2 * head * p.state);
    for (int64_t n = 0; n < lane; ++n) leap.set(n, 1, 0);
    for (int64_t t = 0; t < kFine; ++t) {
      use(t);
      leap.times(base, lane);
    }
  }

  void forward(int64_t head) {
    fine_powers(head, [&](int64_t t) {
      for (int64_t n = 0; n < lane; ++n) {
        fine[n * kFine + t] = static_cast<T>(2 * leap.re[n]);
        fine[(lane + n) * kFine + t] = static_cast<T>(-2 * leap.im[n]);
      }
    });
    for (int64_t r = 0; r < p.rows; ++r) {
      load(moving, p.coefficients + 2 * (head * p.rows + r) * p.state);
      T* kernel = p.kernel + (head * p.rows + r) * p.length;
      for (int64_t first = 0; first < blocks; first += kBlocks) {
        const int64_t count = blocks - first < kBlocks ? blocks - first : kBlocks;
        for (int64_t k = 0; k < count; ++k) {
          copy(rows + k * width, moving.re, lane);
          copy(rows + k * width + lane, moving.im, lane);
          moving.times(leap, lane);
        }
        product<T>({count, kFine, width, rows, width, 1, fine, kFine, out, kFine, false});
        const int64_t left = p.length - first * kFine, length = count * kFine;
        copy(kernel + first * kFine, out, left < length ? left : length);
      }
    }
  }

  // With g the gradient of a row: `sum_l g_l base^l`, and `sum_l l g_l base^(l - 1)`, which is made of the sums over t
  // of `g base^t` and of `t g base^(t - 1)`: nothing is divided by the base, which may be zero.
  void backward(int64_t head) {
    T* slope = fine + kFine * width;
    for (int64_t n = 0; n < width; ++n) slope[n] = 0;
    fine_powers(head, [&](int64_t t) {
      for (int64_t n = 0; n < lane; ++n) {
        fine[t * width + n] = static_cast<T>(leap.re[n]);
        fine[t * width + lane + n] = static_cast<T>(leap.im[n]);
        if (t + 1 < kFine) {
          slope[(t + 1) * width + n] = static_cast<T>((t + 1) * leap.re[n]);
          slope[(t + 1) * width + lane + n] = static_cast<T>((t + 1) * leap.im[n]);
        }
      }
    });
    double* of_base = p.of_base + 2 * head * p.state;
    for (int64_t n = 0; n < 2 * p.state; ++n) of_base[n] = 0;
    for (int64_t r = 0; r < p.rows; ++r) {
      add_row(p.gradient + (head * p.rows + r) * p.length);
      const double* v = p.coefficients + 2 * (head * p.rows + r) * p.state;
      double* of_v = p.of_coefficients + 2 * (head * p.rows + r) * p.state;
      for (int64_t n = 0; n < p.state; ++n) {
        of_v[2 * n] = 2 * sums.re[n];
        of_v[2 * n + 1] = -2 * sums.im[n];
        of_base[2 * n] += 2 * (v[2 * n] * slopes.re[n] - v[2 * n + 1] * slopes.im[n]);
        of_base[2 * n + 1] -= 2 * (v[2 * n] * slopes.im[n] + v[2 * n + 1] * slopes.re[n]);
      }
    }
  }

  // The last block first, by Horner's rule: `f = f leap + block`, `f' = f' leap + f leap' + block'`.
  void add_row(const T* gradient) {
    // leap' = kFine * base ** (kFine - 1)
    for (int64_t n = 0; n < lane; ++n) moving.set(n, kFine, 0);
    for (int64_t t = 1; t < kFine; ++t) moving.times(base, lane);
    for (int64_t n = 0; n < lane; ++n) sums.set(n, 0, 0), slopes.set(n, 0, 0);
    const T* slope = fine + kFine * width;
    for (int64_t first = (blocks - 1) / kBlocks * kBlocks; first >= 0; first -= kBlocks) {
      const int64_t count = blocks - first < kBlocks ? blocks - first : kBlocks;
      const int64_t left = p.length - first * kFine, length = left < count * kFine ? left : count * kFine;
      copy(rows, gradient + first * kFine, length);
      fill(rows + length, count * kFine - length, T(0));
      T* out_slope = out + kBlocks * width;
      product<T>({count, width, kFine, rows, kFine, 1, fine, width, out, width, false});
      product<T>({count, width, kFine, rows, kFine, 1, slope, width, out_slope, width, false});
      for (int64_t k = count - 1; k >= 0; --k) {
        const T *value = out + k * width, *change = out_slope + k * width;
        for (int64_t n = 0; n < lane; ++n) {
          const double re = sums.re[n], im = sums.im[n], slope_re = slopes.re[n], slope_im = slopes.im[n];
          slopes.re[n] = slope_re * leap.re[n] - slope_im * leap.im[n] + re * moving.re[n] - im * moving.im[n] + change[n];
          slopes.im[n] =
              slope_re * leap.im[n] + slope_im * leap.re[n] + re * moving.im[n] + im * moving.re[n] + change[lane + n];
          sums.re[n] = re * leap.re[n] - im * leap.im[n] + value[n];
          sums.im[n] = re * leap.im[n] + im * leap.re[n] + value[lane + n];
        }
      }
    }
  }
};

template <typename T>
int64_t powers_scratch(const Powers<T>& powers) {
  Arena arena(nullptr);
  return PowerSums<T>(powers, arena).bytes;
}

template <typename T>
void powers_forward(const Powers<T>& powers, int64_t head, void* scratch) {
  Arena arena(scratch);
  PowerSums<T>(powers, arena).forward(head);
}

template <typename T>
void powers_backward(const Powers<T>& powers, int64_t head, void* scratch) {
  Arena arena(scratch);
  PowerSums<T>(powers, arena).backward(head);
}

}  // namespace S4_ISA
}  // namespace s4
