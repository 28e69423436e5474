// Kernels of scans, for GPUs. A signal `[batch, heads, length]` in chunks of steps, and `[batch, heads, chunks, n]` as well, are
// rows, one for each sequence and chunk, of so many columns; what is beyond the end of a signal counts as zero.
#pragma once

#include <cstdint>

namespace s4 {

constexpr int kThreads = 256, kEdge = 64, kDepth = 16;  // of a block, whose tile of a product is square

template <typename T>
struct Rows {
  T* data;
  int64_t batch, head, chunk, column, steps, limit;

  __device__ bool has(int64_t k, int64_t i) const { return k * steps + i < limit; }
  __device__ T* at(int64_t sequence, int64_t h, int64_t k, int64_t i) const {
    return data + sequence * batch + h * head + k * chunk + i * column;
  }
};

// One for each head.
template <typename T>
struct Matrices {
  T* data;
  int64_t head, row, column, rows, columns;

  __device__ T* at(int64_t h, int64_t i, int64_t j) const { return data + h * head + i * row + j * column; }
};

template <typename T>
struct Tile {
  T left[kDepth][kEdge + 1], right[kDepth][kEdge + 1];
  int64_t lost[kEdge];
};

template <typename T>
__device__ void add_tile(const Tile<T>& tile, T (&total)[4][4]) {
  const int row = threadIdx.x / 16 * 4, column = threadIdx.x % 16;
  for (int k = 0; k < kDepth; ++k)
    for (int r = 0; r < 4; ++r)
      for (int c = 0; c < 4; ++c) total[r][c] += tile.left[k][row + r] * tile.right[k][column + 16 * c];
}

template <typename T>
__device__ void add_product(
    Tile<T>& tile, Rows<const T> x, Matrices<const T> matrix, int64_t batch, int64_t chunks, int64_t head,
    int64_t first_row, int64_t first_column, bool causal, T (&total)[4][4]) {
  for (int64_t start = 0; start < matrix.rows; start += kDepth) {
    for (int e = threadIdx.x; e < kEdge * kDepth; e += kThreads) {
      const int64_t row = first_row + e / kDepth, i = start + e % kDepth;
      const int64_t k = row % chunks;
      const bool inside = row < batch * chunks && i < matrix.rows && x.has(k, i);
      tile.left[e % kDepth][e / kDepth] = inside ? *x.at(row / chunks, head, k, i) : T(0);
      const int64_t m = start + e / kEdge, column = first_column + e % kEdge;
      tile.right[e / kEdge][e % kEdge] = m < matrix.rows && column < matrix.columns ? *matrix.at(head, m, column) : T(0);
    }
    __syncthreads();
    if (causal) {
      // products with the zeros of a triangle would carry NaN and infinity back in time
      if (threadIdx.x < kEdge)
        for (int k = 0; k < kDepth; ++k) {
          T& value = tile.left[k][threadIdx.x];
          if (value - value == T(0)) continue;
          value = T(0);
          if (start + k < tile.lost[threadIdx.x]) tile.lost[threadIdx.x] = start + k;
        }
      __syncthreads();
    }
    add_tile(tile, total);
    __syncthreads();
  }
}

template <typename T>
__device__ T gelu(T x) {
  if constexpr (sizeof(T) == sizeof(float))
    return x * (0.5f * erfcf(x * -0.70710678f));
  else
    return x * (0.5 * erfc(x * -0.70710678118654752));
}

// `out (+)= x matrix (+ other other_matrix)`, row by row, or the GELU of it
template <typename T>
__global__ void multiply_kernel(
    Rows<T> out, Rows<const T> x, Matrices<const T> matrix, Rows<const T> other, Matrices<const T> other_matrix,
    int64_t batch, int64_t chunks, bool add, bool causal, bool activate) {
  __shared__ Tile<T> tile;
  const int64_t tiles = (batch * chunks + kEdge - 1) / kEdge, head = blockIdx.x / tiles;
  const int64_t first_row = blockIdx.x % tiles * kEdge, first_column = static_cast<int64_t>(blockIdx.y) * kEdge;
  T total[4][4] = {};
  if (threadIdx.x < kEdge) tile.lost[threadIdx.x] = INT64_MAX;
  __syncthreads();
  add_product(tile, x, matrix, batch, chunks, head, first_row, first_column, causal, total);
  if (other.data != nullptr)
    add_product(tile, other, other_matrix, batch, chunks, head, first_row, first_column, false, total);
  for (int r = 0; r < 4; ++r)
    for (int c = 0; c < 4; ++c) {
      const int place = threadIdx.x / 16 * 4 + r;
      const int64_t row = first_row + place, column = first_column + threadIdx.x % 16 + 16 * c, k = row % chunks;
      if (row >= batch * chunks || column >= matrix.columns || !out.has(k, column)) continue;
      T* to = out.at(row / chunks, head, k, column);
      const T value = add ? *to + total[r][c] : total[r][c];
      *to = column >= tile.lost[place] ? static_cast<T>(NAN) : activate ? gelu(value) : value;
    }
}

// `out[i][j] = sum x[row][i] y[row][j]` over all rows
template <typename T>
__global__ void correlate_kernel(Matrices<T> out, Rows<const T> x, Rows<const T> y, int64_t batch, int64_t chunks) {
  __shared__ Tile<T> tile;
  const int64_t tiles = (out.rows + kEdge - 1) / kEdge, head = blockIdx.x / tiles;
  const int64_t first_i = blockIdx.x % tiles * kEdge, first_j = static_cast<int64_t>(blockIdx.y) * kEdge;
  T total[4][4] = {};
  for (int64_t start = 0; start < batch * chunks; start += kDepth) {
    for (int e = threadIdx.x; e < kEdge * kDepth; e += kThreads) {
      const int64_t row = start + e / kEdge, i = first_i + e % kEdge, j = first_j + e % kEdge;
      const int64_t sequence = row / chunks, k = row % chunks;
      const bool is_row = row < batch * chunks;
      tile.left[e / kEdge][e % kEdge] = is_row && i < out.rows && x.has(k, i) ? *x.at(sequence, head, k, i) : T(0);
      tile.right[e / kEdge][e % kEdge] = is_row && j < out.columns && y.has(k, j) ? *y.at(sequence, head, k, j) : T(0);
    }
    __syncthreads();
    add_tile(tile, total);
    __syncthreads();
  }
  for (int r = 0; r < 4; ++r)
    for (int c = 0; c < 4; ++c) {
      const int64_t i = first_i + threadIdx.x / 16 * 4 + r, j = first_j + threadIdx.x % 16 + 16 * c;
      if (i < out.rows && j < out.columns) *out.at(head, i, j) = total[r][c];
    }
}

template <typename T>
struct Leap {
  const T *data, *last;  // the last chunk may be shorter; strides are the same
  int64_t head, group, row, column;
};

// One block for each sequence and head: states before each chunk (after it, in reverse) and the one at the end.
template <typename T>
__global__ void scan_kernel(
    T* states, const T* added, Leap<T> leap, const T* first, T* last, int64_t heads, int64_t chunks,
    int64_t groups, int64_t size, bool reverse) {
  S4_SHARED(T, memory);
  const int64_t sequence = blockIdx.x, head = sequence % heads, count = groups * size;
  T *x = memory, *next = memory + count;
  for (int64_t n = threadIdx.x; n < count; n += blockDim.x) x[n] = first[sequence * count + n];
  __syncthreads();
  for (int64_t step = 0; step < chunks; ++step) {
    const int64_t k = reverse ? chunks - 1 - step : step, at = (sequence * chunks + k) * count;
    const T* matrix = (k == chunks - 1 ? leap.last : leap.data) + head * leap.head;
    for (int64_t n = threadIdx.x; n < count; n += blockDim.x) {
      const int64_t g = n / size, i = n % size;
      const T* row = matrix + g * leap.group + i * leap.row;
      T total = added[at + n];
      for (int64_t j = 0; j < size; ++j) total += row[j * leap.column] * x[g * size + j];
      states[at + n] = x[n];
      next[n] = total;
    }
    __syncthreads();
    T* before = x;
    x = next, next = before;
  }
  for (int64_t n = threadIdx.x; n < count; n += blockDim.x) last[sequence * count + n] = x[n];
}

// One block for each sequence and head; `tail` and `skip` may be null, and `last` the state.
template <typename T>
__global__ void step_kernel(
    T* outputs, T* last, const T* inputs, const T* increment, const T* tail, const T* b, const T* c, const T* skip,
    const T* left, const T* right, const T* state, int64_t heads, int64_t channels, int64_t groups, int64_t rank) {
  S4_SHARED(T, memory);
  const int64_t sequence = blockIdx.x, head = sequence % heads, count = 2 * groups;
  T *after = memory, *sums = memory + count, *inner = sums + blockDim.x;
  const T u = inputs[sequence], *before = state + sequence * count;
  // the product of a row and a vector, which all threads get
  const auto product = [&](const T* row, const T* vector) {
    __syncthreads();
    T sum = 0;
    for (int64_t n = threadIdx.x; n < count; n += blockDim.x) sum += row[n] * vector[n];
    sums[threadIdx.x] = sum;
    __syncthreads();
    T total = 0;
    for (int64_t i = 0; i < blockDim.x; ++i) total += sums[i];
    return total;
  };
  for (int64_t r = 0; r < rank; ++r) {
    const T total = product(right + (head * rank + r) * count, before);
    if (threadIdx.x == 0) inner[r] = total;
  }
  __syncthreads();
  for (int64_t n = threadIdx.x; n < count; n += blockDim.x) {
    const T x = before[n], other = n % 2 == 0 ? -before[n + 1] : before[n - 1];
    const int64_t p = head * count + n - n % 2;  // of [[p, -q], [q, p]]
    T change = b[head * count + n] * u;
    for (int64_t r = 0; r < rank; ++r) change -= left[(head * rank + r) * count + n] * inner[r];
    if (tail != nullptr) change += tail[p] * x + tail[p + 1] * other;
    after[n] = x + (change + increment[p] * x + increment[p + 1] * other);
  }
  __syncthreads();  // all of the state has been read
  for (int64_t n = threadIdx.x; n < count; n += blockDim.x) last[sequence * count + n] = after[n];
  for (int64_t r = 0; r < channels; ++r) {
    const T y = product(c + (head * channels + r) * count, after);
    if (threadIdx.x > 0) continue;
    const T direct = skip == nullptr ? T(0) : skip[r * heads + head] * u;
    outputs[(sequence / heads * channels + r) * heads + head] = y + direct;
  }
}

}  // namespace s4
