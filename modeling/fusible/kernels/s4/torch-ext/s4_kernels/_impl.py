"""Checks, fake implementations and gradients of the compiled operations."""

from typing import Any

import torch

from ._ops import add_op_namespace_prefix, ops


REAL = (torch.float32, torch.float64)
Grads = tuple[torch.Tensor | None, ...]


def _check(name: str, tensor: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name} has shape {list(tensor.shape)} instead of {list(shape)}")
    if tensor.dtype != dtype:
        raise TypeError(f"{name} has dtype {tensor.dtype} instead of {dtype}")
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}, but the first argument on {device}")


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
    outputs, last = ops.ssm_scan(inputs.to(dtype), transition, b, c, skip, state.to(dtype))
    return outputs.to(inputs.dtype), last.to(inputs.dtype)


def ssm_step(
    inputs: torch.Tensor,
    transition: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    state: torch.Tensor,
    skip: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    One step of `ssm_scan`, quickest with parameters in the dtype of the inputs.

    Args:
        inputs: u `[batch, heads]`; the others are those of `ssm_scan`.

    Returns:
        y `[batch, channels, heads]` and the new state, in the dtype of the inputs.

    Raises:
        TypeError: for dtypes, and ValueError for shapes and devices that do not fit.
    """
    if inputs.ndim != 2:
        raise ValueError("inputs must be [batch, heads]")
    tensors = (inputs, transition, b, c, state, skip)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        outputs, last = ssm_scan(inputs[..., None], transition, b, c, state, skip)
        return outputs[..., 0], last
    _check_scan(inputs, transition, b, c, state, skip)
    dtype = torch.promote_types(inputs.dtype, torch.float32)
    transition, b, c, state = (tensor.to(dtype) for tensor in (transition, b, c, state))
    skip = None if skip is None else skip.to(dtype)
    outputs, last = ops.ssm_step(inputs.to(dtype), transition, b, c, skip, state)
    return outputs.to(inputs.dtype), last.to(inputs.dtype)


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
    return ops.vandermonde(coefficients, base, length, dtype == torch.float32)


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
    transition: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    skip: torch.Tensor | None,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    return inputs.new_empty(inputs.shape[0], c.shape[1], inputs.shape[1]), state.new_empty(state.shape)


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


def _save_vandermonde(ctx: Any, inputs: tuple, output: Any) -> None:
    ctx.save_for_backward(*inputs[:2])


def _vandermonde_backward(ctx: Any, gradient: torch.Tensor) -> Grads:
    return *ops.vandermonde_backward(gradient, *ctx.saved_tensors), None, None


def _refuse(ctx: Any, *gradients: Any) -> Any:
    raise NotImplementedError("S4's compiled operations have first derivatives only.")


_scan, _powers = add_op_namespace_prefix("ssm_scan"), add_op_namespace_prefix("vandermonde")
torch.library.register_autograd(_scan, _scan_backward, setup_context=_save_scan)
torch.library.register_autograd(_powers, _vandermonde_backward, setup_context=_save_vandermonde)
torch.library.register_autograd(_scan + "_backward", _refuse)
torch.library.register_autograd(_powers + "_backward", _refuse)


__all__ = ["ssm_scan", "ssm_step", "vandermonde"]
