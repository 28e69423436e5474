// The operations that `_device.py` is made of. Tests compile this file for the CPU, with S4_EMULATED and a header.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cmath>
#include <optional>

#ifndef S4_EMULATED
#include <cuda_runtime.h>

#define S4_SHARED(T, name)                                   \
  extern __shared__ __align__(16) unsigned char s4_memory[]; \
  T* name = reinterpret_cast<T*>(s4_memory)
#define S4_KEY CUDA
#else
#define S4_KEY CPU
#endif

#include "device.h"
#include "device_poles.h"
#include "registration.h"

#define S4_FRAGMENT(name, module) STABLE_TORCH_LIBRARY_FRAGMENT(name, module)

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace s4 {
namespace {

template <typename... Parameters, typename... Arguments>
void launch(
    const Tensor& on, void (*kernel)(Parameters...), dim3 grid, int64_t threads, int64_t bytes, Arguments... arguments) {
#ifdef S4_EMULATED
  (void)on;
  emulate(grid, threads, bytes, [=] { kernel(arguments...); });
#else
  const torch::stable::accelerator::DeviceGuard guard(on.get_device_index());
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(on.get_device_index(), &stream));
  if (bytes > 48 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
    STD_TORCH_CHECK(error == cudaSuccess, "a block needs more shared memory than this GPU has: ", cudaGetErrorString(error));
  }
  kernel<<<grid, static_cast<unsigned>(threads), bytes, static_cast<cudaStream_t>(stream)>>>(arguments...);
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, cudaGetErrorString(error));
#endif
}

dim3 grid_of(int64_t x, int64_t y) {
  STD_TORCH_CHECK(x <= INT32_MAX && y <= 65535, "there are more blocks than a GPU can number");
  return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y), 1);
}

int64_t tiles(int64_t size, int64_t edge) { return (size + edge - 1) / edge; }

template <typename Run>
void with_type(const Tensor& tensor, Run run) {
  const ScalarType dtype = tensor.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, "numbers must be float32 or float64");
  if (dtype == ScalarType::Float)
    run(float{});
  else
    run(double{});
}

void check_like(const Tensor& tensor, const Tensor& other) {
  STD_TORCH_CHECK(tensor.scalar_type() == other.scalar_type(), "dtypes differ");
  STD_TORCH_CHECK(tensor.get_device_index() == other.get_device_index(), "devices differ");
}

template <typename T>
T* contiguous_data(const Tensor& tensor, const Tensor& like) {
  check_like(tensor, like);
  STD_TORCH_CHECK(tensor.is_contiguous(), "a tensor is not contiguous");
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// of a signal, or of `[batch, heads, chunks, n]`
struct Shape {
  int64_t batch, heads, chunks;

  Shape(const Tensor& tensor, int64_t steps) : batch(tensor.size(0)), heads(tensor.size(1)) {
    STD_TORCH_CHECK((tensor.dim() == 3 || tensor.dim() == 4) && steps > 0, "rows are of 3 or 4 dimensions");
    chunks = tensor.dim() == 4 ? tensor.size(2) : (tensor.size(2) + steps - 1) / steps;
  }
  bool operator==(const Shape& other) const {
    return batch == other.batch && heads == other.heads && chunks == other.chunks;
  }
};

template <typename T>
Rows<T> rows_of(const Tensor& tensor, int64_t steps) {
  T* data = static_cast<T*>(tensor.mutable_data_ptr());
  const int64_t batch = tensor.stride(0), head = tensor.stride(1), third = tensor.stride(2);
  if (tensor.dim() == 3) return {data, batch, head, third * steps, third, steps, tensor.size(2)};
  return {data, batch, head, third, tensor.stride(3), 0, tensor.size(3)};
}

template <typename T>
Matrices<T> matrices_of(const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.dim() == 3, "matrices have 3 dimensions");
  T* data = static_cast<T*>(tensor.mutable_data_ptr());
  return {data, tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.size(1), tensor.size(2)};
}

template <typename T>
Leap<T> leap_of(const Tensor& tensor, const Tensor& last, const Tensor& like) {
  check_like(tensor, like), check_like(last, like);
  STD_TORCH_CHECK(tensor.dim() == 4 && last.dim() == 4, "leaps are [heads, groups, size, size]");
  for (int64_t i = 0; i < 4; ++i)
    STD_TORCH_CHECK(tensor.size(i) == last.size(i) && tensor.stride(i) == last.stride(i), "leaps differ");
  const T *data = static_cast<const T*>(tensor.const_data_ptr()), *late = static_cast<const T*>(last.const_data_ptr());
  return {data, late, tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3)};
}

void multiply(
    Tensor out, Tensor x, Tensor matrix, std::optional<Tensor> other, std::optional<Tensor> other_matrix, int64_t steps,
    bool add, bool causal, bool gelu) {
  const Shape shape(out, steps);
  STD_TORCH_CHECK(shape == Shape(x, steps) && matrix.size(0) == shape.heads, "rows of a product differ");
  STD_TORCH_CHECK(other.has_value() == other_matrix.has_value(), "one part of a product is missing");
  check_like(x, out), check_like(matrix, out);
  if (other.has_value()) {
    STD_TORCH_CHECK(shape == Shape(*other, steps) && other_matrix->size(0) == shape.heads, "rows of a product differ");
    STD_TORCH_CHECK(other_matrix->size(2) == matrix.size(2), "columns of a product differ");
    check_like(*other, out), check_like(*other_matrix, out);
  }
  if (shape.batch * shape.heads * shape.chunks == 0) return;
  with_type(out, [&](auto zero) {
    using T = decltype(zero);
    Rows<const T> second{};
    Matrices<const T> second_matrix{};
    if (other.has_value())
      second = rows_of<const T>(*other, steps), second_matrix = matrices_of<const T>(*other_matrix);
    const dim3 grid = grid_of(tiles(shape.batch * shape.chunks, kEdge) * shape.heads, tiles(matrix.size(2), kEdge));
    launch(
        out, multiply_kernel<T>, grid, kThreads, 0, rows_of<T>(out, steps), rows_of<const T>(x, steps),
        matrices_of<const T>(matrix), second, second_matrix, shape.batch, shape.chunks, add, causal, gelu);
  });
}

void correlate(Tensor out, Tensor x, Tensor y, int64_t steps) {
  const Shape shape(x, steps);
  STD_TORCH_CHECK(shape == Shape(y, steps) && out.size(0) == shape.heads, "rows of a product differ");
  check_like(x, out), check_like(y, out);
  if (shape.heads == 0) return;
  with_type(out, [&](auto zero) {
    using T = decltype(zero);
    const Matrices<T> to = matrices_of<T>(out);
    const dim3 grid = grid_of(tiles(to.rows, kEdge) * shape.heads, tiles(to.columns, kEdge));
    launch(
        out, correlate_kernel<T>, grid, kThreads, 0, to, rows_of<const T>(x, steps), rows_of<const T>(y, steps),
        shape.batch, shape.chunks);
  });
}

int64_t threads_for(int64_t count) { return count >= kThreads ? kThreads : tiles(count, 32) * 32; }

void scan(Tensor states, Tensor added, Tensor leap, Tensor last_leap, Tensor first, Tensor last, bool reverse) {
  STD_TORCH_CHECK(states.dim() == 4 && leap.dim() == 4, "states and leaps have 4 dimensions");
  const int64_t sequences = states.size(0) * states.size(1), heads = states.size(1), chunks = states.size(2);
  const int64_t count = states.size(3), groups = leap.size(1), size = leap.size(2);
  STD_TORCH_CHECK(
      leap.size(0) == heads && leap.size(3) == size && groups * size == count, "leaps do not fit the states");
  STD_TORCH_CHECK(added.numel() == states.numel(), "states and what is added differ");
  STD_TORCH_CHECK(first.numel() == sequences * count && last.numel() == sequences * count, "states have another size");
  if (sequences == 0) return;
  with_type(states, [&](auto zero) {
    using T = decltype(zero);
    launch(
        states, scan_kernel<T>, grid_of(sequences, 1), threads_for(count), 2 * count * static_cast<int64_t>(sizeof(T)),
        contiguous_data<T>(states, states), static_cast<const T*>(contiguous_data<T>(added, states)),
        leap_of<T>(leap, last_leap, states), static_cast<const T*>(contiguous_data<T>(first, states)),
        contiguous_data<T>(last, states), heads, chunks, groups, size, reverse);
  });
}

void step(
    Tensor outputs, Tensor last, Tensor inputs, Tensor increment, std::optional<Tensor> tail, Tensor b, Tensor c,
    std::optional<Tensor> skip, std::optional<Tensor> left, std::optional<Tensor> right, Tensor state) {
  STD_TORCH_CHECK(inputs.dim() == 2 && increment.dim() == 3 && c.dim() == 4, "an argument has the wrong dimensions");
  STD_TORCH_CHECK(left.has_value() == right.has_value(), "left and right go together");
  STD_TORCH_CHECK(!left.has_value() || left->dim() == 4, "left has the wrong dimensions");
  const int64_t sequences = inputs.numel(), heads = inputs.size(1), channels = c.size(1);
  const int64_t groups = increment.size(1), count = 2 * groups, rank = left.has_value() ? left->size(1) : 0;
  STD_TORCH_CHECK(increment.numel() == heads * count && b.numel() == heads * count, "maps have other sizes");
  STD_TORCH_CHECK(c.numel() == heads * channels * count && state.numel() == sequences * count, "c or state has another size");
  STD_TORCH_CHECK(outputs.numel() == sequences * channels && last.numel() == state.numel(), "results have other sizes");
  STD_TORCH_CHECK(!tail.has_value() || tail->numel() == increment.numel(), "tail has another size");
  STD_TORCH_CHECK(!skip.has_value() || skip->numel() == channels * heads, "skip has another size");
  STD_TORCH_CHECK(
      rank == 0 || (left->numel() == heads * rank * count && right->numel() == left->numel()), "left or right has another size");
  if (sequences == 0) return;
  with_type(inputs, [&](auto zero) {
    using T = decltype(zero);
    const auto of = [&](const Tensor& tensor) { return static_cast<const T*>(contiguous_data<T>(tensor, inputs)); };
    const auto maybe = [&](const std::optional<Tensor>& tensor) {
      return tensor.has_value() ? of(*tensor) : static_cast<const T*>(nullptr);
    };
    const int64_t threads = count > 128 ? 128 : threads_for(count);
    launch(
        inputs, step_kernel<T>, grid_of(sequences, 1), threads,
        (count + threads + rank) * static_cast<int64_t>(sizeof(T)), contiguous_data<T>(outputs, inputs),
        contiguous_data<T>(last, inputs), of(inputs), of(increment), maybe(tail), of(b), of(c), maybe(skip), maybe(left),
        maybe(right), of(state), heads, channels, groups, rank);
  });
}

template <typename T>
Poles<T> poles_of(const Tensor& weights, const Tensor& states, const Tensor& nodes) {
  STD_TORCH_CHECK(weights.dim() == 5 && nodes.dim() == 2, "weights must be [heads, 2, ins, outs, state], nodes [5, count]");
  STD_TORCH_CHECK(weights.size(1) == 2 && weights.size(2) > 0 && weights.size(3) >= weights.size(2), "weights do not fit");
  STD_TORCH_CHECK(states.numel() == weights.size(0) * 4 * weights.size(4) && nodes.size(0) == 5, "tables do not fit");
  return {contiguous_data<T>(weights, weights), contiguous_data<T>(states, weights), contiguous_data<T>(nodes, weights),
          weights.size(4), weights.size(2), weights.size(3), nodes.size(1)};
}

void pole_sums(Tensor spectrum, Tensor weights, Tensor states, Tensor nodes) {
  if (weights.size(0) == 0) return;
  with_type(weights, [&](auto zero) {
    using T = decltype(zero);
    const Poles<T> poles = poles_of<T>(weights, states, nodes);
    const int64_t entries = poles.ins * poles.outs + poles.ins - 1, heads = weights.size(0);
    STD_TORCH_CHECK(spectrum.numel() == heads * (poles.outs - poles.ins + 1) * poles.count * 2, "spectrum does not fit");
    launch(
        weights, pole_sums_kernel<T>, grid_of(tiles(poles.count, kNodes), heads), kNodes,
        entries * 2 * kNodes * static_cast<int64_t>(sizeof(T)), contiguous_data<T>(spectrum, weights), poles);
  });
}

void pole_sums_backward(
    Tensor of_weights, Tensor of_states, Tensor gradient, Tensor weights, Tensor states, Tensor nodes) {
  if (weights.size(0) == 0) return;
  with_type(weights, [&](auto zero) {
    using T = decltype(zero);
    const Poles<T> poles = poles_of<T>(weights, states, nodes);
    const int64_t rows = poles.ins * poles.outs, heads = weights.size(0), blocks = tiles(poles.count, kNodes);
    STD_TORCH_CHECK(gradient.numel() == heads * (poles.outs - poles.ins + 1) * poles.count * 2, "gradient does not fit");
    STD_TORCH_CHECK(of_weights.numel() == blocks * weights.numel(), "gradient of weights does not fit");
    STD_TORCH_CHECK(of_states.numel() == heads * blocks * 2 * poles.state, "gradient of states does not fit");
    const int64_t entries = 2 * rows + poles.ins - 1 + 1 + 2 * kStates;
    launch(
        weights, pole_sums_backward_kernel<T>, grid_of(blocks, heads), kNodes,
        entries * 2 * kNodes * static_cast<int64_t>(sizeof(T)), contiguous_data<T>(of_weights, weights),
        contiguous_data<T>(of_states, weights), static_cast<const T*>(contiguous_data<T>(gradient, weights)), poles);
  });
}

}  // namespace
}  // namespace s4

S4_FRAGMENT(TORCH_EXTENSION_NAME, m) {
  m.def(
      "multiply(Tensor(a!) out, Tensor x, Tensor matrix, Tensor? other, Tensor? other_matrix, int steps, bool add, "
      "bool causal, bool gelu=False) -> ()");
  m.def("correlate(Tensor(a!) out, Tensor x, Tensor y, int steps) -> ()");
  m.def(
      "scan(Tensor(a!) states, Tensor added, Tensor leap, Tensor last_leap, Tensor first, Tensor(b!) last, bool reverse) "
      "-> ()");
  m.def(
      "step(Tensor(a!) outputs, Tensor(b!) last, Tensor inputs, Tensor increment, Tensor? tail, Tensor b, Tensor c, "
      "Tensor? skip, Tensor? left, Tensor? right, Tensor state) -> ()");
  m.def("pole_sums_of(Tensor(a!) spectrum, Tensor weights, Tensor states, Tensor nodes) -> ()");
  m.def(
      "pole_sums_backward_of(Tensor(a!) of_weights, Tensor(b!) of_states, Tensor gradient, Tensor weights, Tensor states, "
      "Tensor nodes) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, S4_KEY, m) {
  m.impl("multiply", TORCH_BOX(&s4::multiply));
  m.impl("correlate", TORCH_BOX(&s4::correlate));
  m.impl("scan", TORCH_BOX(&s4::scan));
  m.impl("step", TORCH_BOX(&s4::step));
  m.impl("pole_sums_of", TORCH_BOX(&s4::pole_sums));
  m.impl("pole_sums_backward_of", TORCH_BOX(&s4::pole_sums_backward));
}
