// The maps of a chunk in double precision, and the gradient of the parameters given theirs.
#pragma once

#include "blocks.h"

namespace s4 {
namespace S4_ISA {

// Hands out pieces of one piece of memory, aligned to cache lines; without memory it only counts.
struct Arena {
  char* at;
  int64_t used = 0;

  explicit Arena(void* memory) : at(static_cast<char*>(memory)) {}

  template <typename T>
  T* take(int64_t count) {
    T* piece = at == nullptr ? nullptr : reinterpret_cast<T*>(at + used);
    used += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return piece;
  }
};

// Of one head. `responses[l] = A^l b`, `readouts[r][l] = c_r A^l` for l <= steps, both rows of `width`.
struct Maps {
  double *matrix, *flipped, *b, *responses, *readouts, *kernel, *tape;

  Maps(const Layout& n, Arena& arena) {
    matrix = arena.take<double>(n.matrix());
    flipped = arena.take<double>(n.matrix());
    responses = arena.take<double>(n.vectors());
    readouts = arena.take<double>(n.channels * (n.vectors() + n.width));
    kernel = arena.take<double>(n.channels * n.steps);
    tape = arena.take<double>(kTape * n.matrix());
    b = responses;
  }

  double* readout(const Layout& n, int64_t channel) const { return readouts + channel * (n.vectors() + n.width); }

  // from one head of contiguous parameters; `skip` has a stride from channel to channel
  void make(
      const Layout& n, const double* a, const double* b_, const double* c, const double* skip, int64_t skip_stride) {
    const int64_t count = n.groups * n.size;
    load_matrix(n, a, matrix);
    transpose(n, matrix, flipped);
    load_vector(n, b_, responses);
    orbit(n, matrix, responses, n.steps);
    for (int64_t r = 0; r < n.channels; ++r) {
      double* rows = readout(n, r);
      load_vector(n, c + r * count, rows);
      orbit(n, flipped, rows, n.steps + 1);
      for (int64_t l = 0; l < n.steps; ++l) kernel[r * n.steps + l] = dot(rows, responses + l * n.width, n.width);
      if (skip != nullptr) kernel[r * n.steps] += skip[r * skip_stride];
    }
  }
};

// Gradients with respect to the maps, in double precision; `matrix`, `b` and `readouts[r][0]` become the parameters'.
struct MapGradients {
  double *matrix, *responses, *readouts, *kernel, *leap, *tail_leap, *spare;

  MapGradients(const Layout& n, Arena& arena) {
    matrix = arena.take<double>(n.matrix());
    responses = arena.take<double>(n.vectors());
    readouts = arena.take<double>(n.channels * (n.vectors() + n.width));
    kernel = arena.take<double>(n.channels * n.steps);
    leap = arena.take<double>(n.matrix());
    tail_leap = arena.take<double>(n.matrix());
    spare = arena.take<double>(2 * n.matrix());
  }

  void finish(const Layout& n, Maps& maps, int64_t chunks, int64_t tail) {
    const int64_t row_length = n.vectors() + n.width;
    fill(matrix, n.matrix(), 0.0);
    for (int64_t r = 0; r < n.channels; ++r) {
      double* rows = readouts + r * row_length;
      const double* c = maps.readout(n, r);
      for (int64_t i = 0; i < n.width; ++i) rows[i] = 0;
      for (int64_t l = 0; l < n.steps; ++l) {
        const double factor = kernel[r * n.steps + l];
        for (int64_t i = 0; i < n.width; ++i) {
          rows[i] += factor * maps.responses[l * n.width + i];
          responses[l * n.width + i] += factor * c[i];
        }
      }
      orbit_backward(n, maps.matrix, rows, n.steps + 1);
      add_outer(n, c, rows + n.width, n.steps, matrix);
    }
    orbit_backward(n, maps.flipped, responses, n.steps);
    add_outer(n, responses + n.width, maps.responses, n.steps - 1, matrix);
    if (chunks > 0) through_power(n, maps, n.steps, leap);
    if (tail > 0) through_power(n, maps, tail, tail_leap);
  }

  void through_power(const Layout& n, Maps& maps, int64_t exponent, double* gradient) {
    power(n, maps.matrix, exponent, maps.tape);
    power_backward(n, maps.matrix, exponent, maps.tape, gradient, spare, matrix);
  }
};

}  // namespace S4_ISA
}  // namespace s4
