// Registers the operations in a namespace of this build's own, TORCH_EXTENSION_NAME.
#include "torch_binding.h"

#include <torch/csrc/stable/library.h>

#include "registration.h"

STABLE_TORCH_LIBRARY_EXPAND(TORCH_EXTENSION_NAME, m) {
  m.def(
      "ssm_scan(Tensor inputs, Tensor transition, Tensor b, Tensor c, Tensor? skip, Tensor state, bool gelu) -> "
      "(Tensor, Tensor)");
  m.def(
      "ssm_scan_backward(Tensor of_outputs, Tensor of_last, Tensor inputs, Tensor transition, Tensor b, Tensor c, "
      "Tensor? skip, Tensor state) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "ssm_step_(Tensor(a!) outputs, Tensor(b!) state, Tensor inputs, Tensor increment, Tensor? tail, Tensor b, "
      "Tensor c, Tensor? skip, Tensor? left, Tensor? right) -> ()");
  m.def("cauchy(Tensor inputs, Tensor outputs, Tensor poles, int length, bool single) -> Tensor");
  m.def(
      "cauchy_backward(Tensor gradient, Tensor inputs, Tensor outputs, Tensor poles, int length) -> "
      "(Tensor, Tensor, Tensor)");
  m.def("vandermonde(Tensor coefficients, Tensor base, int length, bool single) -> Tensor");
  m.def("vandermonde_backward(Tensor gradient, Tensor coefficients, Tensor base) -> (Tensor, Tensor)");
}

// variants for other devices have these as well, as their torch also runs models on the CPU
STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, CPU, m) {
  m.impl("ssm_scan", TORCH_BOX(&ssm_scan));
  m.impl("ssm_scan_backward", TORCH_BOX(&ssm_scan_backward));
  m.impl("ssm_step_", TORCH_BOX(&ssm_step_));
  m.impl("cauchy", TORCH_BOX(&cauchy));
  m.impl("cauchy_backward", TORCH_BOX(&cauchy_backward));
  m.impl("vandermonde", TORCH_BOX(&vandermonde));
  m.impl("vandermonde_backward", TORCH_BOX(&vandermonde_backward));
}

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
