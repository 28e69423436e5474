// Products of small matrices in vector registers, for one instruction set.
//
// A file that includes this defines S4_ISA, a namespace, and S4_BYTES, the size of a vector. It must not use templates
// or inline functions of other libraries: the linker keeps one copy of those, and the copy of this file may hold
// instructions that the machine lacks.
#pragma once

#include <cstdint>

namespace s4 {
namespace S4_ISA {

template <typename T>
struct Vector;

template <>
struct Vector<float> {
  typedef float type __attribute__((vector_size(S4_BYTES), aligned(4), may_alias));
  static constexpr int64_t lanes = S4_BYTES / 4;
};

template <>
struct Vector<double> {
  typedef double type __attribute__((vector_size(S4_BYTES), aligned(8), may_alias));
  static constexpr int64_t lanes = S4_BYTES / 8;
};

template <typename T>
inline typename Vector<T>::type load(const T* from) {
  return *reinterpret_cast<const typename Vector<T>::type*>(from);
}

template <typename T>
inline void store(T* to, typename Vector<T>::type value) {
  *reinterpret_cast<typename Vector<T>::type*>(to) = value;
}

inline int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// `out[r][c] (+)= sum_k left[r * left_row + k * left_depth] * right[k * right_depth + c]`; `right_depth` and `out_row`
// are row lengths.
template <typename T>
struct Product {
  int64_t rows, columns, depth;
  const T* left;
  int64_t left_row, left_depth;
  const T* right;
  int64_t right_depth;
  T* out;
  int64_t out_row;
  bool add;
};

template <typename T, int rows, int vectors>
inline void product_block(const Product<T>& p, int64_t row, int64_t column) {
  using V = typename Vector<T>::type;
  constexpr int64_t lanes = Vector<T>::lanes;
  const T* left = p.left + row * p.left_row;
  const T* right = p.right + column;
  T* out = p.out + row * p.out_row + column;
  V sums[rows][vectors];
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < vectors; ++v) sums[r][v] = p.add ? load(out + r * p.out_row + v * lanes) : V{};
  for (int64_t k = 0; k < p.depth; ++k) {
    V values[vectors];
    for (int v = 0; v < vectors; ++v) values[v] = load(right + k * p.right_depth + v * lanes);
    for (int r = 0; r < rows; ++r) {
      const T factor = left[r * p.left_row + k * p.left_depth];
      for (int v = 0; v < vectors; ++v) sums[r][v] += factor * values[v];
    }
  }
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < vectors; ++v) store(out + r * p.out_row + v * lanes, sums[r][v]);
}

// As many rows as the registers hold; single rows take more columns, so that sums do not wait for each other.
template <typename T>
void product(const Product<T>& p) {
  constexpr int64_t lanes = Vector<T>::lanes;
  constexpr int block = S4_BYTES == 64 ? 8 : 4;
  int64_t row = 0;
  for (; row + block <= p.rows; row += block) {
    int64_t column = 0;
    for (; column + 2 * lanes <= p.columns; column += 2 * lanes) product_block<T, block, 2>(p, row, column);
    for (; column < p.columns; column += lanes) product_block<T, block, 1>(p, row, column);
  }
  for (; row + 2 <= p.rows; row += 2) {
    int64_t column = 0;
    for (; column + 4 * lanes <= p.columns; column += 4 * lanes) product_block<T, 2, 4>(p, row, column);
    for (; column < p.columns; column += lanes) product_block<T, 2, 1>(p, row, column);
  }
  for (; row < p.rows; ++row) {
    int64_t column = 0;
    for (; column + 4 * lanes <= p.columns; column += 4 * lanes) product_block<T, 1, 4>(p, row, column);
    for (; column < p.columns; column += lanes) product_block<T, 1, 1>(p, row, column);
  }
}

template <typename T>
inline void fill(T* to, int64_t count, T value) {
  for (int64_t i = 0; i < count; ++i) to[i] = value;
}

template <typename T, typename U>
inline void copy(T* to, const U* from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(from[i]);
}

// integers of the size of T, which say what a shuffle takes
template <typename T>
struct Places;

template <>
struct Places<float> {
  typedef int32_t type __attribute__((vector_size(S4_BYTES)));
};

template <>
struct Places<double> {
  typedef int64_t type __attribute__((vector_size(S4_BYTES)));
};

template <typename T, int64_t distance = Vector<T>::lanes / 2>
inline T total(typename Vector<T>::type sum) {
  typename Places<T>::type other{};
  for (int64_t i = 0; i < Vector<T>::lanes; ++i) other[i] = i ^ distance;
  sum += __builtin_shuffle(sum, other);
  if constexpr (distance > 1)
    return total<T, distance / 2>(sum);
  else
    return sum[0];
}

template <typename T, typename U>
inline typename Vector<T>::type load_as(const U* from) {
  typedef U Wide __attribute__((vector_size(Vector<T>::lanes * sizeof(U)), aligned(sizeof(U)), may_alias));
  return __builtin_convertvector(*reinterpret_cast<const Wide*>(from), typename Vector<T>::type);
}

// Swaps, bit by bit, the number of a row and the place in it.
template <typename T, int64_t distance = 1>
inline void transpose_rows(typename Vector<T>::type* rows) {
  constexpr int64_t lanes = Vector<T>::lanes;
  typename Places<T>::type first{}, second{};
  for (int64_t i = 0; i < lanes; ++i) {
    first[i] = i & distance ? lanes + i - distance : i;
    second[i] = i & distance ? lanes + i : i + distance;
  }
#pragma GCC unroll 16
  for (int64_t r = 0; r < lanes; ++r) {
    if (r & distance) continue;
    const auto low = rows[r], high = rows[r + distance];
    rows[r] = __builtin_shuffle(low, high, first), rows[r + distance] = __builtin_shuffle(low, high, second);
  }
  if constexpr (2 * distance < lanes) transpose_rows<T, 2 * distance>(rows);
}

// `to[c * to_row + r] = from[r * from_row + c]`
template <typename T, typename U>
void turn(const U* from, int64_t from_row, int64_t rows, int64_t columns, T* to, int64_t to_row) {
  constexpr int64_t lanes = Vector<T>::lanes;
  const int64_t whole_rows = rows / lanes * lanes, whole_columns = columns / lanes * lanes;
  for (int64_t r = 0; r < whole_rows; r += lanes)
    for (int64_t c = 0; c < whole_columns; c += lanes) {
      typename Vector<T>::type block[lanes];
#pragma GCC unroll 16
      for (int64_t i = 0; i < lanes; ++i) block[i] = load_as<T>(from + (r + i) * from_row + c);
      transpose_rows<T>(block);
#pragma GCC unroll 16
      for (int64_t i = 0; i < lanes; ++i) store(to + (c + i) * to_row + r, block[i]);
    }
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = r < whole_rows ? whole_columns : 0; c < columns; ++c)
      to[c * to_row + r] = static_cast<T>(from[r * from_row + c]);
}

// `count` is a multiple of the lanes
template <typename T>
inline T dot(const T* left, const T* right, int64_t count) {
  typename Vector<T>::type sum{};
  for (int64_t i = 0; i < count; i += Vector<T>::lanes) sum += load(left + i) * load(right + i);
  return total<T>(sum);
}

template <typename T>
inline bool is_finite(const T* values, int64_t count) {
  typename Vector<T>::type sum{};
  for (int64_t i = 0; i < count; i += Vector<T>::lanes) sum += load(values + i) * T(0);
  T total = 0;
  for (int64_t i = 0; i < Vector<T>::lanes; ++i) total += sum[i];
  return total == 0;
}

}  // namespace S4_ISA
}  // namespace s4
