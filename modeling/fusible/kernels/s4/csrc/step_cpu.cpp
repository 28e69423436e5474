#include <algorithm>
#include <vector>

#include "host.h"
#include "torch_binding.h"

using namespace s4;

namespace {

constexpr int64_t kTile = 24 << 10;  // bytes of parameters that stay in the first cache, from sequence to sequence

template <typename T>
void run(Step<T>& step) {
  const int64_t count = step.groups * step.size, numbers = count * (2 * step.size + 1 + step.channels);
  step.tile = std::max<int64_t>(1, kTile / (numbers * static_cast<int64_t>(sizeof(T))));
  const int64_t tiles = (step.heads + step.tile - 1) / step.tile;
  // threads pay from some ten microseconds of work on
  const int64_t grain = 1 + (1 << 17) / (step.tile * count * (step.size + step.channels));
  torch::stable::parallel_for(0, step.batch * tiles, grain, [&](int64_t begin, int64_t end) {
    std::vector<T> block(static_cast<std::size_t>(step.size == 2 ? 0 : step.size));
    functions<T>().step(step, begin, end, block.data());
  });
}

void check_order(const int64_t* order, int64_t heads) {
  for (int64_t head = 0; head < heads; ++head)
    STD_TORCH_CHECK(order[head] >= 0 && order[head] < heads, "order has ", order[head], ", but there are ", heads, " heads");
}

}  // namespace

void ssm_step_(
    const Tensor& outputs, const Tensor& state, const Tensor& inputs, const Tensor& increment,
    const std::optional<Tensor>& tail, const Tensor& b, const Tensor& c, const std::optional<Tensor>& skip,
    const std::optional<Tensor>& order, int64_t first) {
  const ScalarType dtype = check_real(state, "state");
  STD_TORCH_CHECK(state.dim() == 4, "state must have 4 dimensions, not the shape ", shown(state.sizes()));
  STD_TORCH_CHECK(
      increment.dim() == 3 || increment.dim() == 4, "increment must have 3 or 4 dimensions, not the shape ",
      shown(increment.sizes()));
  STD_TORCH_CHECK(c.dim() == 4, "c must have 4 dimensions, not the shape ", shown(c.sizes()));
  STD_TORCH_CHECK(inputs.dim() > 1, "inputs must have at least 2 dimensions, not the shape ", shown(inputs.sizes()));
  const int64_t batch = state.size(0), all = state.size(1), heads = increment.size(0), channels = c.size(1);
  const bool rotations = increment.dim() == 3;
  const int64_t groups = increment.size(1), size = rotations ? 2 : increment.size(2), last = inputs.dim() - 1;
  STD_TORCH_CHECK(groups > 0 && size > 0 && channels > 0, "groups, size and channels must be positive");
  STD_TORCH_CHECK(first >= 0 && heads <= all - first, "the state has ", all, " heads, too few for ", heads, " from number ", first, " on");
  STD_TORCH_CHECK(
      state.size(2) * state.size(3) == groups * size, "state has shape ", shown(state.sizes()), ", but increment ",
      shown(increment.sizes()), ": a head's state would be ", groups * size, " numbers");
  check_tensor(state, "state", dtype, {batch, all, state.size(2), state.size(3)});
  const auto check_map = [&](const Tensor& map, const char* name) {
    if (rotations)
      check_tensor(map, name, dtype, {heads, groups, 2});
    else
      check_tensor(map, name, dtype, {heads, groups, size, size});
  };
  check_map(increment, "increment");
  if (tail.has_value()) check_map(*tail, "tail");
  check_tensor(b, "b", dtype, {heads, groups, size});
  check_tensor(c, "c", dtype, {heads, channels, groups, size});
  if (skip.has_value()) check_tensor(*skip, "skip", dtype, {channels, all});
  if (order.has_value()) check_tensor(*order, "order", ScalarType::Long, {all});
  check_kind(inputs, "inputs", dtype), check_kind(outputs, "outputs", dtype);
  STD_TORCH_CHECK(
      inputs.size(0) == batch && inputs.size(last) == all && inputs.numel() == batch * all, "inputs has shape ",
      shown(inputs.sizes()), " instead of ", shown(std::initializer_list<int64_t>{batch, all}));
  STD_TORCH_CHECK(
      outputs.dim() > 0 && outputs.size(0) == batch && outputs.numel() == batch * channels * all, "outputs has shape ",
      shown(outputs.sizes()), " instead of ", shown(std::initializer_list<int64_t>{batch, channels, all}));
  STD_TORCH_CHECK(state.is_contiguous() && outputs.is_contiguous(), "what is written to must be contiguous");
  std::vector<Tensor> copies;
  const auto with = [&](auto zero) {
    using T = decltype(zero);
    // to ask is a tenth of the time that a call of `contiguous` takes, which is much of a step's
    const auto pointer = [&](const Tensor& tensor) {
      if (tensor.is_contiguous()) return tensor.const_data_ptr();
      copies.push_back(torch::stable::contiguous(tensor));
      return copies.back().const_data_ptr();
    };
    const auto of = [&](const Tensor& tensor) { return static_cast<const T*>(pointer(tensor)); };
    Step<T> step{};
    step.batch = batch, step.all = all, step.first = first, step.heads = heads, step.channels = channels;
    step.groups = groups, step.size = size, step.rotations = rotations;
    step.increment = of(increment), step.tail = tail.has_value() ? of(*tail) : nullptr;
    step.b = of(b), step.c = of(c), step.skip = skip.has_value() ? of(*skip) : nullptr, step.inputs = of(inputs);
    step.order = order.has_value() ? static_cast<const int64_t*>(pointer(*order)) : nullptr;
    step.outputs = mutable_data<T>(outputs), step.state = mutable_data<T>(state);
    if (step.order != nullptr) check_order(step.order, all);
    run(step);
  };
  if (dtype == ScalarType::Float)
    with(float{});
  else
    with(double{});
}
