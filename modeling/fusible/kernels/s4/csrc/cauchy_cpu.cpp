#include <cmath>
#include <vector>

#include "host.h"
#include "torch_binding.h"

using namespace s4;

namespace {

// Checked and contiguous, with cosines and sines of half the nodes' angles.
struct Sums {
  Tensor inputs, outputs, poles;
  int64_t heads, rank, channels, state, count;
  std::vector<double> nodes;

  Sums(const Tensor& in, const Tensor& out, const Tensor& w, int64_t length) {
    STD_TORCH_CHECK(in.dim() == 3 && out.dim() == 3 && w.dim() == 2, "the arguments have the wrong number of dimensions");
    STD_TORCH_CHECK(length > 0, "length must be positive");
    heads = in.size(0), rank = in.size(1) - 1, channels = out.size(1) - rank, state = in.size(2);
    STD_TORCH_CHECK(rank >= 0 && channels > 0 && state > 0, "rows of inputs and outputs, and states must be positive");
    check_tensor(in, "inputs", ScalarType::ComplexDouble, {heads, 1 + rank, state});
    check_tensor(out, "outputs", ScalarType::ComplexDouble, {heads, channels + rank, state});
    check_tensor(w, "poles", ScalarType::ComplexDouble, {heads, state});
    inputs = torch::stable::contiguous(in), outputs = torch::stable::contiguous(out), poles = torch::stable::contiguous(w);
    count = length / 2 + 1;
    nodes.resize(2 * count);
    for (int64_t k = 0; k < count; ++k) {
      const double angle = 3.14159265358979323846 * static_cast<double>(k) / static_cast<double>(length);
      nodes[k] = std::cos(angle), nodes[count + k] = std::sin(angle);
    }
  }

  template <typename T>
  Cauchy<T> cauchy() const {
    Cauchy<T> cauchy{};
    cauchy.heads = heads, cauchy.rank = rank, cauchy.channels = channels, cauchy.state = state, cauchy.count = count;
    cauchy.inputs = data<double>(inputs), cauchy.outputs = data<double>(outputs), cauchy.poles = data<double>(poles);
    cauchy.cosines = nodes.data(), cauchy.sines = nodes.data() + count;
    return cauchy;
  }
};

template <typename T, typename Run>
void over_heads(const Cauchy<T>& cauchy, Run run) {
  over(cauchy.heads, functions<T>().cauchy.scratch(cauchy), [&](int64_t head, void* scratch) { run(cauchy, head, scratch); });
}

}  // namespace

Tensor cauchy(Tensor inputs, Tensor outputs, Tensor poles, int64_t length, bool single) {
  const Sums sums(inputs, outputs, poles, length);
  const ScalarType dtype = single ? ScalarType::ComplexFloat : ScalarType::ComplexDouble;
  const Tensor spectrum = torch::stable::new_empty(poles, {sums.heads, sums.channels, sums.count}, dtype);
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    Cauchy<T> cauchy = sums.cauchy<T>();
    cauchy.spectrum = mutable_data<T>(spectrum);
    over_heads(cauchy, functions<T>().cauchy.forward);
  };
  if (single)
    run(float{});
  else
    run(double{});
  return spectrum;
}

std::tuple<Tensor, Tensor, Tensor> cauchy_backward(
    Tensor gradient, Tensor inputs, Tensor outputs, Tensor poles, int64_t length) {
  const Sums sums(inputs, outputs, poles, length);
  const ScalarType dtype = gradient.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::ComplexFloat || dtype == ScalarType::ComplexDouble, "gradient must be complex");
  check_tensor(gradient, "gradient", dtype, {sums.heads, sums.channels, sums.count});
  const Tensor dense = torch::stable::contiguous(gradient), of_inputs = torch::stable::empty_like(sums.inputs);
  const Tensor of_outputs = torch::stable::empty_like(sums.outputs), of_poles = torch::stable::empty_like(sums.poles);
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    Cauchy<T> cauchy = sums.cauchy<T>();
    cauchy.gradient = data<T>(dense), cauchy.of_inputs = mutable_data<double>(of_inputs);
    cauchy.of_outputs = mutable_data<double>(of_outputs), cauchy.of_poles = mutable_data<double>(of_poles);
    over_heads(cauchy, functions<T>().cauchy.backward);
  };
  if (dtype == ScalarType::ComplexFloat)
    run(float{});
  else
    run(double{});
  return {of_inputs, of_outputs, of_poles};
}
