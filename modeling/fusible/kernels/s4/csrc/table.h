// One instruction set's table of functions.
#pragma once

#include "cauchy.h"
#include "powers.h"
#include "scan_backward.h"
#include "step.h"

namespace s4 {
namespace S4_ISA {

template <typename T>
int64_t forward_scratch(const Scan<T>& scan) {
  Arena arena(nullptr);
  return Forward<T>(scan, arena).bytes;
}

template <typename T>
void forward(const Scan<T>& scan, int64_t first_head, int64_t from, int64_t to, void* scratch) {
  Arena arena(scratch);
  Forward<T>(scan, arena).run(scan, first_head, from, to);
}

template <typename T>
int64_t backward_scratch(const Scan<T>& scan) {
  Arena arena(nullptr);
  return Backward<T>(scan, arena).bytes;
}

template <typename T>
void backward(const Scan<T>& scan, const ScanGradient<T>& gradient, int64_t first_head, void* scratch) {
  Arena arena(scratch);
  Backward<T>(scan, arena).run(scan, gradient, first_head);
}

template <typename T>
constexpr Functions<T> functions() {
  return {
      {forward_scratch<T>, forward<T>, backward_scratch<T>, backward<T>},
      {powers_scratch<T>, powers_forward<T>, powers_backward<T>},
      {cauchy_scratch<T>, cauchy_forward<T>, cauchy_backward<T>},
      step<T>};
}

const Table& table() {
  static constexpr Table all = {functions<float>(), functions<double>()};
  return all;
}

}  // namespace S4_ISA
}  // namespace s4
