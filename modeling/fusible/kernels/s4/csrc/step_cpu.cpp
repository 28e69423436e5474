#include <algorithm>
#include <vector>

#include "host.h"
#include "torch_binding.h"

using namespace s4;

namespace {

constexpr int64_t kTile = 24 << 10;  // bytes of parameters that stay in the first cache, from sequence to sequence

template <typename T>
void run(Step<T>& step) {
  const int64_t count = 2 * step.groups, numbers = count * (3 + step.channels + 2 * step.rank);
  step.tile = std::max<int64_t>(1, kTile / (numbers * static_cast<int64_t>(sizeof(T))));
  const int64_t tiles = (step.heads + step.tile - 1) / step.tile;
  // threads pay from some ten microseconds of work on
  const int64_t grain = 1 + (1 << 17) / (step.tile * count * (2 + step.channels + 2 * step.rank));
  torch::stable::parallel_for(0, step.batch * tiles, grain, [&](int64_t begin, int64_t end) {
    const FlushToZero mode;
    std::vector<T> inner(static_cast<std::size_t>(step.rank));
    functions<T>().step(step, begin, end, inner.data());
  });
}

}  // namespace

void ssm_step_(
    const Tensor& outputs, const Tensor& state, const Tensor& inputs, const Tensor& increment,
    const std::optional<Tensor>& tail, const Tensor& b, const Tensor& c, const std::optional<Tensor>& skip,
    const std::optional<Tensor>& left, const std::optional<Tensor>& right) {
  const ScalarType dtype = check_real(state, "state");
  STD_TORCH_CHECK(state.dim() == 4, "state must have 4 dimensions, not the shape ", shown(state.sizes()));
  STD_TORCH_CHECK(c.dim() == 4, "c must have 4 dimensions, not the shape ", shown(c.sizes()));
  STD_TORCH_CHECK(inputs.dim() > 1, "inputs must have at least 2 dimensions, not the shape ", shown(inputs.sizes()));
  STD_TORCH_CHECK(left.has_value() == right.has_value(), "left and right go together");
  STD_TORCH_CHECK(
      !left.has_value() || left->dim() == 4, "left must have 4 dimensions, not the shape ", shown(left->sizes()));
  const int64_t batch = state.size(0), heads = state.size(1), groups = state.size(2), channels = c.size(1);
  const int64_t rank = left.has_value() ? left->size(1) : 0, last = inputs.dim() - 1;
  STD_TORCH_CHECK(groups > 0 && channels > 0, "groups and channels must be positive");
  check_tensor(state, "state", dtype, {batch, heads, groups, 2});
  check_tensor(increment, "increment", dtype, {heads, groups, 2});
  if (tail.has_value()) check_tensor(*tail, "tail", dtype, {heads, groups, 2});
  check_tensor(b, "b", dtype, {heads, groups, 2});
  check_tensor(c, "c", dtype, {heads, channels, groups, 2});
  if (skip.has_value()) check_tensor(*skip, "skip", dtype, {channels, heads});
  if (left.has_value()) {
    check_tensor(*left, "left", dtype, {heads, rank, groups, 2});
    check_tensor(*right, "right", dtype, {heads, rank, groups, 2});
  }
  check_kind(inputs, "inputs", dtype), check_kind(outputs, "outputs", dtype);
  STD_TORCH_CHECK(
      inputs.size(0) == batch && inputs.size(last) == heads && inputs.numel() == batch * heads, "inputs has shape ",
      shown(inputs.sizes()), " instead of ", shown(std::initializer_list<int64_t>{batch, heads}));
  STD_TORCH_CHECK(
      outputs.dim() > 0 && outputs.size(0) == batch && outputs.numel() == batch * channels * heads, "outputs has shape ",
      shown(outputs.sizes()), " instead of ", shown(std::initializer_list<int64_t>{batch, channels, heads}));
  STD_TORCH_CHECK(state.is_contiguous() && outputs.is_contiguous(), "what is written to must be contiguous");
  std::vector<Tensor> copies;
  const auto with = [&](auto zero) {
    using T = decltype(zero);
    // to ask is a tenth of the time that a call of `contiguous` takes, which is much of a step's
    const auto of = [&](const Tensor& tensor) {
      if (tensor.is_contiguous()) return static_cast<const T*>(tensor.const_data_ptr());
      copies.push_back(torch::stable::contiguous(tensor));
      return static_cast<const T*>(copies.back().const_data_ptr());
    };
    const auto maybe = [&](const std::optional<Tensor>& tensor) { return tensor.has_value() ? of(*tensor) : nullptr; };
    Step<T> step{};
    step.batch = batch, step.heads = heads, step.channels = channels, step.groups = groups, step.rank = rank;
    step.increment = of(increment), step.tail = maybe(tail), step.b = of(b), step.c = of(c), step.skip = maybe(skip);
    step.left = maybe(left), step.right = maybe(right), step.inputs = of(inputs);
    step.outputs = mutable_data<T>(outputs), step.state = mutable_data<T>(state);
    run(step);
  };
  if (dtype == ScalarType::Float)
    with(float{});
  else
    with(double{});
}
