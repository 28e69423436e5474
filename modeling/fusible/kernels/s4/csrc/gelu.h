// GELU in vector registers, the exact one: `x Phi(x)`, with the normal distribution function Phi.
#pragma once

#include "simd.h"

namespace s4 {
namespace S4_ISA {

// With `v = (a - 4) / (a + 4)`, `exp(a^2 / 2) Phi(-a) (a + 4)` is a polynomial of v, and `2^f` one of f; both interpolate
// at Chebyshev nodes, from the constant on, and are as exact as the type. Beyond `limit`, `exp(-limit)` is no normal number.
template <typename T>
struct GeluTerms;

template <>
struct GeluTerms<float> {
  static constexpr float limit = 87, rounding = 12582912;  // sums with that are integers
  static constexpr int64_t fraction = 23;                  // bits
  static constexpr float tail[] = {
      0.755285138f, -0.607896638f, 0.38713671f, -0.186522128f, 0.0604068573f, -0.00753307713f, -0.00353029972f,
      0.00157869563f, 0.000213337237f, -0.000115118498f};
  static constexpr float power[] = {
      1.0f, 0.693147207f, 0.240226509f, 0.0555032723f, 0.00961805668f, 0.00134004282f, 0.000154614447f};
};

template <>
struct GeluTerms<double> {
  static constexpr double limit = 708, rounding = 6755399441055744;
  static constexpr int64_t fraction = 52;
  static constexpr double tail[] = {
      0.75528513041575128, -0.60789664197188815, 0.38713740074227056, -0.18652185796002853,
      0.060396574888422552, -0.0075401889566675846, -0.0034796923224680216, 0.0016308183348198903,
      0.00013334389266172587, -0.00023109412805224017, -1.9059324402521668e-6, 3.5141582012962223e-5,
      7.0852895864130169e-7, -5.9130060999620053e-6, -6.112770334002489e-7, 1.0119288390406573e-6,
      2.449852875165446e-7, -1.4857347415294585e-7, -6.1310452612766317e-8, 1.293806152359573e-8,
      7.5765651234874072e-9};
  static constexpr double power[] = {
      1.0, 0.69314718055994531, 0.2402265069591016, 0.055504108664821627, 0.0096181291075872567,
      0.0013333558146406471, 0.00015403530463724354, 1.5252733841556773e-5, 1.3215432535912376e-6,
      1.0178057087733941e-7, 7.074194297288521e-9, 4.4558179083360645e-10};
};

template <typename T, typename V, int64_t count>
inline V polynomial(const T (&terms)[count], V x) {
  V sum = x * terms[count - 1] + terms[count - 2];
  for (int64_t i = count - 3; i >= 0; --i) sum = sum * x + terms[i];
  return sum;
}

// in place; `count` is a multiple of the lanes. Infinity stays, NaN and minus infinity give NaN.
template <typename T>
void gelu(T* values, int64_t count) {
  using V = typename Vector<T>::type;
  using Bits = typename Places<T>::type;
  using Terms = GeluTerms<T>;
  for (int64_t i = 0; i < count; i += Vector<T>::lanes) {
    const V x = load(values + i), size = x < T(0) ? -x : x;
    const V half_square = size * size * T(0.5), exponent = half_square * T(-1.4426950408889634);
    const V shifted = exponent + Terms::rounding, whole = shifted - Terms::rounding;
    const V scaled = (V)((Bits)polynomial(Terms::power, V(exponent - whole)) + ((Bits)shifted << Terms::fraction));
    const V inverse = T(1) / (size + T(4));
    const V beyond = scaled * inverse * polynomial(Terms::tail, V((size - T(4)) * inverse));
    const V tail = half_square > Terms::limit ? V{} : beyond;  // Phi(-size)
    store(values + i, V(x * (x > T(0) ? T(1) - tail : tail)));
  }
}

}  // namespace S4_ISA
}  // namespace s4
