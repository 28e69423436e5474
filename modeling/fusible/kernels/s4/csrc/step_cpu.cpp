#include "host.h"
#include "torch_binding.h"

using namespace s4;

namespace {

template <typename T>
void run(Step<T> step, const Tensor& inputs, const Tensor& state, const Tensor& outputs, const Tensor& last) {
  step.inputs = data<T>(inputs), step.state = data<T>(state);
  step.outputs = mutable_data<T>(outputs), step.last = mutable_data<T>(last);
  // threads pay from some tens of thousands of products on
  const int64_t grain = 1 + (1 << 16) / (step.groups * step.size * (step.size + step.channels));
  torch::stable::parallel_for(
      0, step.batch * step.heads, grain, [&](int64_t begin, int64_t end) { functions<T>().step(step, begin, end); });
}

}  // namespace

std::tuple<Tensor, Tensor> ssm_step(
    Tensor inputs, Tensor increment, std::optional<Tensor> tail, Tensor b, Tensor c, std::optional<Tensor> skip,
    Tensor state) {
  const ScalarType dtype = check_real(inputs, "inputs");
  STD_TORCH_CHECK(inputs.dim() == 2, "inputs must be [batch, heads]");
  STD_TORCH_CHECK(increment.dim() == 4 && c.dim() == 4, "increment and c must have 4 dimensions");
  const int64_t batch = inputs.size(0), heads = inputs.size(1), channels = c.size(1);
  const int64_t groups = increment.size(1), size = increment.size(2);
  STD_TORCH_CHECK(groups > 0 && size > 0 && channels > 0, "groups, size and channels must be positive");
  check_tensor(inputs, "inputs", dtype, {batch, heads});
  check_tensor(increment, "increment", dtype, {heads, groups, size, size});
  if (tail.has_value()) check_tensor(*tail, "tail", dtype, {heads, groups, size, size});
  check_tensor(b, "b", dtype, {heads, groups, size});
  check_tensor(c, "c", dtype, {heads, channels, groups, size});
  check_tensor(state, "state", dtype, {batch, heads, groups, size});
  if (skip.has_value()) check_tensor(*skip, "skip", dtype, {channels, heads});
  // to ask is a tenth of the time that a call of `contiguous` takes, which is much of a step's
  const auto dense = [](const Tensor& tensor) {
    return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
  };
  const Tensor a = dense(increment), input_map = dense(b), output_map = dense(c), u = dense(inputs), x = dense(state);
  const Tensor d = skip.has_value() ? dense(*skip) : u, rest = tail.has_value() ? dense(*tail) : u;
  const Tensor outputs = torch::stable::new_empty(u, {batch, channels, heads}), last = torch::stable::empty_like(x);
  const auto with = [&](auto zero) {
    using T = decltype(zero);
    Step<T> step{};
    step.batch = batch, step.heads = heads, step.channels = channels, step.groups = groups, step.size = size;
    step.increment = data<T>(a), step.tail = tail.has_value() ? data<T>(rest) : nullptr;
    step.b = data<T>(input_map), step.c = data<T>(output_map);
    step.skip = skip.has_value() ? data<T>(d) : nullptr;
    run(step, u, x, outputs, last);
  };
  if (dtype == ScalarType::Float)
    with(float{});
  else
    with(double{});
  return {outputs, last};
}
