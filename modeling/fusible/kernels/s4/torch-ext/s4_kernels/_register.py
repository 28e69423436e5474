"""Fake implementations and gradients of the compiled operations."""

from typing import Any

import torch

from . import _device
from ._ops import add_op_namespace_prefix, ops


Grads = tuple[torch.Tensor | None, ...]


def _register_fake(name: str) -> Any:
    return torch.library.register_fake(add_op_namespace_prefix(name))


@_register_fake("ssm_scan")
def _(
    inputs: torch.Tensor,
    transition: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    skip: torch.Tensor | None,
    state: torch.Tensor,
    gelu: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    (batch, heads, length), channels = inputs.shape, c.shape[1]
    if inputs.stride(1) < inputs.stride(2):
        outputs = inputs.new_empty(batch, length, channels, heads).permute(0, 2, 3, 1)
    else:
        outputs = inputs.new_empty(batch, channels, heads, length)
    return outputs, state.new_empty(state.shape)


@_register_fake("ssm_scan_backward")
def _(
    of_outputs: torch.Tensor,
    of_last: torch.Tensor,
    inputs: torch.Tensor,
    transition: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    skip: torch.Tensor | None,
    state: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    batch, heads, length = inputs.shape
    if inputs.stride(1) < inputs.stride(2):
        of_inputs = inputs.new_empty(batch, length, heads).mT
    else:
        of_inputs = inputs.new_empty(batch, heads, length)
    of_skip = b.new_empty(0 if skip is None else skip.shape)
    return (
        of_inputs,
        *(part.new_empty(part.shape) for part in (transition, b, c)),
        of_skip,
        state.new_empty(state.shape),
    )


@_register_fake("ssm_step_")
def _(*arguments: Any) -> None:
    # the dispatcher also comes here with a mixture of real and meta tensors, which nothing else refuses
    devices = {str(part.device) for part in arguments if isinstance(part, torch.Tensor)}
    if len(devices) > 1:
        raise RuntimeError(f"all tensors of a step must be on one device, not on {' and '.join(sorted(devices))}")


@_register_fake("cauchy")
def _(inputs: torch.Tensor, outputs: torch.Tensor, poles: torch.Tensor, length: int, single: bool) -> torch.Tensor:
    channels = outputs.shape[1] - inputs.shape[1] + 1
    dtype = torch.complex64 if single else torch.complex128
    return inputs.new_empty(len(inputs), channels, length // 2 + 1, dtype=dtype)


@_register_fake("cauchy_backward")
def _(
    gradient: torch.Tensor, inputs: torch.Tensor, outputs: torch.Tensor, poles: torch.Tensor, length: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return inputs.new_empty(inputs.shape), outputs.new_empty(outputs.shape), poles.new_empty(poles.shape)


@_register_fake("vandermonde")
def _(coefficients: torch.Tensor, base: torch.Tensor, length: int, single: bool) -> torch.Tensor:
    dtype = torch.float32 if single else torch.float64
    return coefficients.new_empty(*coefficients.shape[:2], length, dtype=dtype)


@_register_fake("vandermonde_backward")
def _(gradient: torch.Tensor, coefficients: torch.Tensor, base: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return coefficients.new_empty(coefficients.shape), base.new_empty(base.shape)


def _scan_backward(ctx: Any, of_outputs: torch.Tensor, of_last: torch.Tensor) -> Grads:
    inputs, transition, b, c, skip, state = ctx.saved_tensors
    of_inputs, of_transition, of_b, of_c, of_skip, of_state = ops.ssm_scan_backward(
        of_outputs, of_last, inputs, transition, b, c, skip, state
    )
    return of_inputs, of_transition, of_b, of_c, None if skip is None else of_skip, of_state, None


def _save_cauchy(ctx: Any, inputs: tuple, output: Any) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.length = inputs[3]


def _cauchy_backward(ctx: Any, gradient: torch.Tensor) -> Grads:
    return *ops.cauchy_backward(gradient, *ctx.saved_tensors, ctx.length), None, None


def _save_vandermonde(ctx: Any, inputs: tuple, output: Any) -> None:
    ctx.save_for_backward(*inputs[:2])


def _vandermonde_backward(ctx: Any, gradient: torch.Tensor) -> Grads:
    return *ops.vandermonde_backward(gradient, *ctx.saved_tensors), None, None


for _name, _backward, _save in (
    ("ssm_scan", _scan_backward, _device.save_scan),
    ("cauchy", _cauchy_backward, _save_cauchy),
    ("vandermonde", _vandermonde_backward, _save_vandermonde),
):
    _device.register_gradient(_name, _backward, _save)
    _device.register_gradient(_name + "_backward", _device.refuse, None)
