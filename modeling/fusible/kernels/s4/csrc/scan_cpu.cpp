#include "host.h"
#include "torch_binding.h"

using namespace s4;

namespace {

// What a scan needs of its arguments, checked, and contiguous in double precision where they are parameters.
struct Arguments {
  Tensor inputs, transition, b, c, state;
  std::optional<Tensor> skip;
  int64_t batch, heads, length, channels, groups, size;
  ScalarType dtype, precise;

  Arguments(
      const Tensor& u, const Tensor& a, const Tensor& b_, const Tensor& c_, const std::optional<Tensor>& d,
      const Tensor& x)
      : inputs(u), dtype(check_real(u, "inputs")), precise(check_real(a, "transition")) {
    STD_TORCH_CHECK(u.dim() == 3, "inputs must be [batch, heads, length]");
    STD_TORCH_CHECK(a.dim() == 4, "transition must be [heads, groups, size, size]");
    STD_TORCH_CHECK(c_.dim() == 4, "c must be [heads, channels, groups, size]");
    batch = u.size(0), heads = u.size(1), length = u.size(2);
    groups = a.size(1), size = a.size(2), channels = c_.size(1);
    STD_TORCH_CHECK(length > 0 && groups > 0 && size > 0 && channels > 0, "length, groups, size and channels must be positive");
    check_tensor(u, "inputs", dtype, {batch, heads, length});
    check_tensor(a, "transition", precise, {heads, groups, size, size});
    check_tensor(b_, "b", precise, {heads, groups, size});
    check_tensor(c_, "c", precise, {heads, channels, groups, size});
    check_tensor(x, "state", dtype, {batch, heads, groups, size});
    if (d.has_value()) {
      check_tensor(*d, "skip", precise, {channels, heads});
      skip = as(*d, ScalarType::Double);
    }
    transition = as(a, ScalarType::Double), b = as(b_, ScalarType::Double), c = as(c_, ScalarType::Double);
    state = as(x, dtype);
  }

  bool heads_innermost() const { return inputs.stride(1) < inputs.stride(2); }

  // `[batch, channels, heads, length]`, or without channels; heads are innermost in memory if they are in the inputs
  Tensor like_inputs(bool with_channels) const {
    const int64_t rows = with_channels ? channels : 1;
    Tensor made;
    if (heads_innermost()) {
      made = torch::stable::new_empty(inputs, {batch, length, rows, heads});
      made = torch::stable::transpose(torch::stable::transpose(made, 1, 2), 2, 3);
    } else {
      made = torch::stable::new_empty(inputs, {batch, rows, heads, length});
    }
    return with_channels ? made : torch::stable::select(made, 1, 0);
  }

  template <typename T>
  Scan<T> scan() const {
    Scan<T> scan{};
    scan.batch = batch, scan.heads = heads, scan.length = length;
    scan.channels = channels, scan.groups = groups, scan.size = size;
    scan.transition = data<double>(transition), scan.b = data<double>(b), scan.c = data<double>(c);
    scan.skip = skip.has_value() ? data<double>(*skip) : nullptr;
    scan.inputs = data<T>(inputs), scan.state = data<T>(state);
    scan.inputs_at = {inputs.stride(0), 0, inputs.stride(1), inputs.stride(2)};
    return scan;
  }
};

Strides strides(const Tensor& tensor) {
  return {tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3)};
}

template <typename T>
void run(const Arguments& arguments, bool gelu, const Tensor& outputs, const Tensor& last) {
  Scan<T> scan = arguments.scan<T>();
  scan.outputs = mutable_data<T>(outputs), scan.last = mutable_data<T>(last), scan.outputs_at = strides(outputs);
  scan.gelu = gelu;
  const auto& with = functions<T>().scan;
  const int64_t bytes = with.scratch(scan), blocks = (scan.heads + kHeads - 1) / kHeads;
  // several sequences share the maps of their heads, unless threads would have nothing to do
  const int64_t wanted = 4 * static_cast<int64_t>(torch::stable::get_num_threads());
  int64_t pieces = blocks == 0 ? 0 : (wanted + blocks - 1) / blocks;
  if (pieces > scan.batch) pieces = scan.batch;
  over(blocks * pieces, bytes, [&](int64_t i, void* scratch) {
    const int64_t piece = i % pieces, from = scan.batch * piece / pieces, to = scan.batch * (piece + 1) / pieces;
    with.forward(scan, i / pieces * kHeads, from, to, scratch);
  });
}

template <typename T>
void run_backward(const Arguments& arguments, const ScanGradient<T>& gradient) {
  const Scan<T> scan = arguments.scan<T>();
  const auto& with = functions<T>().scan;
  const int64_t bytes = with.backward_scratch(scan), blocks = (scan.heads + kHeads - 1) / kHeads;
  over(blocks, bytes, [&](int64_t i, void* scratch) { with.backward(scan, gradient, i * kHeads, scratch); });
}

}  // namespace

std::tuple<Tensor, Tensor> ssm_scan(
    Tensor inputs, Tensor transition, Tensor b, Tensor c, std::optional<Tensor> skip, Tensor state, bool gelu) {
  const Arguments arguments(inputs, transition, b, c, skip, state);
  Tensor outputs = arguments.like_inputs(true), last = torch::stable::empty_like(arguments.state);
  if (arguments.dtype == ScalarType::Float)
    run<float>(arguments, gelu, outputs, last);
  else
    run<double>(arguments, gelu, outputs, last);
  return {outputs, last};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> ssm_scan_backward(
    Tensor of_outputs, Tensor of_last, Tensor inputs, Tensor transition, Tensor b, Tensor c, std::optional<Tensor> skip,
    Tensor state) {
  const Arguments arguments(inputs, transition, b, c, skip, state);
  const int64_t batch = arguments.batch, heads = arguments.heads;
  check_tensor(of_outputs, "of_outputs", arguments.dtype, {batch, arguments.channels, heads, arguments.length});
  check_tensor(of_last, "of_last", arguments.dtype, {batch, heads, arguments.groups, arguments.size});
  const Tensor last = torch::stable::contiguous(of_last);
  const Tensor of_inputs = arguments.like_inputs(false), of_state = torch::stable::empty_like(arguments.state);
  const Tensor of_transition = torch::stable::empty_like(arguments.transition);
  const Tensor of_b = torch::stable::empty_like(arguments.b), of_c = torch::stable::empty_like(arguments.c);
  const Tensor of_skip = arguments.skip.has_value() ? torch::stable::empty_like(*arguments.skip)
                                                    : torch::stable::new_empty(arguments.b, {0});
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const Strides in{of_inputs.stride(0), 0, of_inputs.stride(1), of_inputs.stride(2)};
    double* of_d = arguments.skip.has_value() ? mutable_data<double>(of_skip) : nullptr;
    run_backward<T>(
        arguments, {data<T>(of_outputs), data<T>(last), strides(of_outputs), in, mutable_data<T>(of_inputs),
                    mutable_data<T>(of_state), mutable_data<double>(of_transition), mutable_data<double>(of_b),
                    mutable_data<double>(of_c), of_d});
  };
  if (arguments.dtype == ScalarType::Float)
    run(float{});
  else
    run(double{});
  const auto cast = [&](const Tensor& tensor) { return torch::stable::to(tensor, arguments.precise); };
  return {of_inputs, cast(of_transition), cast(of_b), cast(of_c), cast(of_skip), of_state};
}
