"""Checks, fake implementations and gradients of the compiled operations."""

from typing import Any

import torch

from . import _device
from ._ops import add_op_namespace_prefix, ops


REAL = (torch.float32, torch.float64)
# which this variant has operations for
devices = tuple(
    device
    for device in ("cpu", "cuda")
    if device in _device.DEVICES
    or torch._C._dispatch_has_kernel_for_dispatch_key(add_op_namespace_prefix("ssm_scan"), device.upper())
)
Grads = tuple[torch.Tensor | None, ...]


def _check(name: str, tensor: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name} has shape {list(tensor.shape)} instead of {list(shape)}")
    if tensor.dtype != dtype:
        raise TypeError(f"{name} has dtype {tensor.dtype} instead of {dtype}")
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}, but the first argument on {device}")


def _operation(name: str, tensor: torch.Tensor) -> Any:
    """
    What computes on the tensor's device.

    Raises:
        ValueError: if nothing does.
    """
    device = tensor.device.type
    if device in _device.DEVICES:
        return getattr(_device, name)
    if device not in (*devices, "meta"):
        raise ValueError(f"these kernels run on {' and '.join(devices)}, not on {device}")
    return getattr(ops, name)


def _check_scan(
    inputs: torch.Tensor,
    transition: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    state: torch.Tensor,
    skip: torch.Tensor | None,
) -> None:
    if transition.ndim != 4 or c.ndim != 4:
        raise ValueError("transition and c must have 4 dimensions")
    if inputs.dtype not in (*REAL, torch.bfloat16, torch.float16):
        raise TypeError(f"inputs must be real floating point numbers, not {inputs.dtype}")
    if transition.dtype not in REAL:
        raise TypeError(f"transition must be float32 or float64, not {transition.dtype}")
    if 0 in (*inputs.shape[2:], *transition.shape[1:], c.shape[1]):
        raise ValueError("length, groups, size and channels must not be zero")
    (batch, heads), (groups, size), device = inputs.shape[:2], transition.shape[1:3], inputs.device
    _check("transition", transition, (heads, groups, size, size), transition.dtype, device)
    _check("b", b, (heads, groups, size), transition.dtype, device)
    _check("c", c, (heads, c.shape[1], groups, size), transition.dtype, device)
    _check("state", state, (batch, heads, groups, size), state.dtype, device)
    if skip is not None:
        _check("skip", skip, (c.shape[1], heads), skip.dtype, device)


def ssm_scan(
    inputs: torch.Tensor,
    transition: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    state: torch.Tensor,
    skip: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The recurrence `x_l = A x_{l-1} + b u_l`, `y_l = c x_l + D u_l`, with A of real blocks.

    Args:
        inputs: u `[batch, heads, length]`, with any strides; computed in float32, or in float64 if it is.
        transition: A `[heads, groups, size, size]`, float32 or float64, as b and c; maps are made of them in float64.
        b: `[heads, groups, size]`.
        c: `[heads, channels, groups, size]`.
        state: x before the first step, `[batch, heads, groups, size]`.
        skip: D `[channels, heads]`.

    Returns:
        y `[batch, channels, heads, length]` and the state after the last step, in the dtype of the inputs. Heads are
        innermost in the memory of y if they are in that of u.

    Raises:
        TypeError: for dtypes, and ValueError for shapes and devices that do not fit.
    """
    if inputs.ndim != 3:
        raise ValueError("inputs must be [batch, heads, length]")
    _check_scan(inputs, transition, b, c, state, skip)
    dtype = torch.promote_types(inputs.dtype, torch.float32)
    skip = None if skip is None else skip.to(transition.dtype)
    function = _operation("ssm_scan", inputs)
    outputs, last = function(inputs.to(dtype), transition, b, c, skip, state.to(dtype))
    return outputs.to(inputs.dtype), last.to(inputs.dtype)


def ssm_step(
    inputs: torch.Tensor,
    increment: torch.Tensor,
    tail: torch.Tensor | None,
    b: torch.Tensor,
    c: torch.Tensor,
    state: torch.Tensor,
    skip: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    One step of `ssm_scan`, all in one dtype, and without a gradient.

    Args:
        inputs: u `[batch, heads]`, float32 or float64.
        increment: the transition without the identity, `[heads, groups, size, size]`: slow modes keep more digits.
        tail: what rounding took away from the increment, of the same shape; the others are those of `ssm_scan`.

    Returns:
        y `[batch, channels, heads]` and the new state, in the dtype of the inputs.

    Raises:
        RuntimeError: for dtypes, shapes and devices that do not fit.
    """
    # which checks all: the whole step takes less time than checks in Python would
    return ops.ssm_step(inputs, increment, tail, b, c, skip, state)


def cauchy(
    inputs: torch.Tensor, outputs: torch.Tensor, poles: torch.Tensor, length: int, dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    """
    Spectra of the kernels of systems with a low-rank part, at the nodes `z_k = exp(-2 pi i k / length)`.

    With `R_ab = sum_n a_n b_n / (2 (1 - z) - w_n (1 + z))`, over the states and their conjugates, of rows a of the
    inputs (B, then P) and b of the outputs (C, then P conjugate), it is
    `2 (R_BC - (1 + z) R_BQ (1 + (1 + z) R_PQ)^-1 R_PC)`: all sums are made at once, by Woodbury's identity.

    Args:
        inputs: `[heads, 1 + rank, state]`, complex128, multiplied by the step size.
        outputs: `[heads, channels + rank, state]`, complex128.
        poles: w `[heads, state]`, complex128, multiplied by the step size.
        length: of the kernels, at least 1.
        dtype: the sums' real one, float32 or float64; quotients are exact to their last digits in both.

    Returns:
        The values at nodes 0 ... length // 2, complex `[heads, channels, length // 2 + 1]`.

    Raises:
        TypeError: for dtypes, and ValueError for shapes and devices that do not fit.
    """
    if inputs.ndim != 3 or outputs.ndim != 3 or length < 1:
        raise ValueError("inputs and outputs must be [heads, rows, state], and length positive")
    if inputs.shape[1] == 0 or outputs.shape[1] < inputs.shape[1] or inputs.shape[2] == 0:
        raise ValueError("there must be inputs, at least as many outputs, and states")
    if dtype not in REAL:
        raise TypeError(f"spectra are made of float32 or float64, not {dtype}")
    (heads, _, state), device = inputs.shape, inputs.device
    _check("inputs", inputs, inputs.shape, torch.complex128, device)
    _check("outputs", outputs, (heads, outputs.shape[1], state), torch.complex128, device)
    _check("poles", poles, (heads, state), torch.complex128, device)
    return _operation("cauchy", inputs)(inputs, outputs, poles, length, dtype == torch.float32)


def vandermonde(
    coefficients: torch.Tensor, base: torch.Tensor, length: int, dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    """
    Kernels of diagonal systems: `K[h, r, l] = 2 Re sum_n coefficients[h, r, n] * base[h, n] ** l`, for l < length.

    Args:
        coefficients: `[heads, rows, state]`, complex128.
        base: `[heads, state]`, complex128.
        length: at least 1.
        dtype: of the result and of the sums, float32 or float64; powers are in double precision.

    Returns:
        `[heads, rows, length]`.

    Raises:
        TypeError: for dtypes, and ValueError for shapes and devices that do not fit.
    """
    if coefficients.ndim != 3 or length < 1 or coefficients.shape[2] == 0:
        raise ValueError("coefficients must be [heads, rows, state], with states, and length positive")
    if dtype not in REAL:
        raise TypeError(f"kernels are float32 or float64, not {dtype}")
    heads, rows, state = coefficients.shape
    _check("coefficients", coefficients, (heads, rows, state), torch.complex128, coefficients.device)
    _check("base", base, (heads, state), torch.complex128, coefficients.device)
    return _operation("vandermonde", base)(coefficients, base, length, dtype == torch.float32)


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


@_register_fake("ssm_step")
def _(
    inputs: torch.Tensor,
    increment: torch.Tensor,
    tail: torch.Tensor | None,
    b: torch.Tensor,
    c: torch.Tensor,
    skip: torch.Tensor | None,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    return inputs.new_empty(inputs.shape[0], c.shape[1], inputs.shape[1]), state.new_empty(state.shape)


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


def _save_scan(ctx: Any, inputs: tuple, output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _scan_backward(ctx: Any, of_outputs: torch.Tensor, of_last: torch.Tensor) -> Grads:
    inputs, transition, b, c, skip, state = ctx.saved_tensors
    of_inputs, of_transition, of_b, of_c, of_skip, of_state = ops.ssm_scan_backward(
        of_outputs, of_last, inputs, transition, b, c, skip, state
    )
    return of_inputs, of_transition, of_b, of_c, None if skip is None else of_skip, of_state


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
    ("ssm_scan", _scan_backward, _save_scan),
    ("cauchy", _cauchy_backward, _save_cauchy),
    ("vandermonde", _vandermonde_backward, _save_vandermonde),
):
    _operator = add_op_namespace_prefix(_name)
    torch.library.register_autograd(_operator, _backward, setup_context=_save)
    torch.library.register_autograd(_operator + "_backward", _device.refuse)


__all__ = ["cauchy", "devices", "ssm_scan", "ssm_step", "vandermonde"]
