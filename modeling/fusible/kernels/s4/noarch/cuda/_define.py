"""Defines the operations as torch_binding.cpp does; `_device` computes those that are used here."""

import torch

from ._ops import add_op_namespace_prefix


SCAN = "Tensor inputs, Tensor transition, Tensor b, Tensor c, Tensor? skip, Tensor state"
CAUCHY = "Tensor inputs, Tensor outputs, Tensor poles, int length"
SCHEMAS = {
    "ssm_scan": f"({SCAN}, bool gelu) -> (Tensor, Tensor)",
    "ssm_scan_backward": f"(Tensor of_outputs, Tensor of_last, {SCAN})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "ssm_step_": "(Tensor(a!) outputs, Tensor(b!) state, Tensor inputs, Tensor increment, Tensor? tail, Tensor b, "
    "Tensor c, Tensor? skip, Tensor? left, Tensor? right) -> ()",
    "cauchy": f"({CAUCHY}, bool single) -> Tensor",
    "cauchy_backward": f"(Tensor gradient, {CAUCHY}) -> (Tensor, Tensor, Tensor)",
    "vandermonde": "(Tensor coefficients, Tensor base, int length, bool single) -> Tensor",
    "vandermonde_backward": "(Tensor gradient, Tensor coefficients, Tensor base) -> (Tensor, Tensor)",
}


for _name, _schema in SCHEMAS.items():
    torch.library.define(add_op_namespace_prefix(_name), _schema)
