#include "host.h"
#include "torch_binding.h"

using namespace s4;

namespace {

// Checked and contiguous.
struct Sums {
  Tensor coefficients, base;
  int64_t heads, rows, state, length;

  Sums(const Tensor& v, const Tensor& x, int64_t steps) : length(steps) {
    STD_TORCH_CHECK(v.dim() == 3 && x.dim() == 2, "coefficients must be [heads, rows, state], base [heads, state]");
    heads = v.size(0), rows = v.size(1), state = v.size(2);
    check_tensor(v, "coefficients", ScalarType::ComplexDouble, {heads, rows, state});
    check_tensor(x, "base", ScalarType::ComplexDouble, {heads, state});
    STD_TORCH_CHECK(length > 0 && state > 0, "length and state must be positive");
    coefficients = torch::stable::contiguous(v), base = torch::stable::contiguous(x);
  }

  template <typename T>
  Powers<T> powers() const {
    Powers<T> powers{};
    powers.heads = heads, powers.rows = rows, powers.state = state, powers.length = length;
    powers.coefficients = data<double>(coefficients), powers.base = data<double>(base);
    return powers;
  }
};

template <typename T, typename Run>
void over_heads(const Powers<T>& powers, Run run) {
  over(powers.heads, functions<T>().powers.scratch(powers), [&](int64_t head, void* scratch) { run(powers, head, scratch); });
}

template <typename T>
void forward(const Sums& sums, const Tensor& kernel) {
  Powers<T> powers = sums.powers<T>();
  powers.kernel = mutable_data<T>(kernel);
  over_heads(powers, functions<T>().powers.forward);
}

template <typename T>
void backward(const Sums& sums, const Tensor& gradient, const Tensor& of_coefficients, const Tensor& of_base) {
  Powers<T> powers = sums.powers<T>();
  powers.gradient = data<T>(gradient);
  powers.of_coefficients = mutable_data<double>(of_coefficients), powers.of_base = mutable_data<double>(of_base);
  over_heads(powers, functions<T>().powers.backward);
}

}  // namespace

Tensor vandermonde(Tensor coefficients, Tensor base, int64_t length, bool single) {
  const Sums sums(coefficients, base, length);
  const ScalarType dtype = single ? ScalarType::Float : ScalarType::Double;
  const Tensor kernel = torch::stable::new_empty(coefficients, {sums.heads, sums.rows, length}, dtype);
  if (single)
    forward<float>(sums, kernel);
  else
    forward<double>(sums, kernel);
  return kernel;
}

std::tuple<Tensor, Tensor> vandermonde_backward(Tensor gradient, Tensor coefficients, Tensor base) {
  const ScalarType dtype = check_real(gradient, "gradient");
  STD_TORCH_CHECK(gradient.dim() == 3, "gradient must be [heads, rows, length]");
  const Sums sums(coefficients, base, gradient.size(2));
  check_tensor(gradient, "gradient", dtype, {sums.heads, sums.rows, sums.length});
  const Tensor dense = torch::stable::contiguous(gradient);
  const Tensor of_coefficients = torch::stable::empty_like(sums.coefficients), of_base = torch::stable::empty_like(sums.base);
  if (dtype == ScalarType::Float)
    backward<float>(sums, dense, of_coefficients, of_base);
  else
    backward<double>(sums, dense, of_coefficients, of_base);
  return {of_coefficients, of_base};
}
