"""The compiled operations, with checks of what they are given."""

from typing import Any

import torch

from . import _device, _register  # noqa: F401
from ._ops import add_op_namespace_prefix, ops


REAL = (torch.float32, torch.float64)
LONGEST = 2**32
# which this variant has operations for
devices = tuple(
    device
    for device in ("cpu", "cuda")
    if device in _device.DEVICES
    or torch._C._dispatch_has_kernel_for_dispatch_key(add_op_namespace_prefix("ssm_scan"), device.upper())
)


_step_ = ops.ssm_step_.default


def _check(name: str, tensor: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name} has shape {list(tensor.shape)} instead of {list(shape)}")
    if tensor.dtype != dtype:
        raise TypeError(f"{name} has dtype {tensor.dtype} instead of {dtype}")
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}, but the first argument on {device}")


def _check_length(length: int) -> None:
    if not 1 <= length <= LONGEST:
        raise ValueError(f"length must be between 1 and {LONGEST}, not {length}")


def _operation(name: str, tensor: torch.Tensor) -> Any:
    """
    What computes on the tensor's device.

    Raises:
        ValueError: if nothing does.
        NotImplementedError: in forward mode.
    """
    _device.refuse_tangents()
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
    gelu: bool = False,
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
        gelu: whether to return the GELU of y, the exact one. It is made with y, unless a gradient is wanted.

    Returns:
        y `[batch, channels, heads, length]` and the state after the last step, in the dtype of the inputs. Heads are
        innermost in the memory of y if they are in that of u.

    Raises:
        TypeError: for dtypes, and ValueError for shapes and devices that do not fit.
        NotImplementedError: within `torch.func.jvp` and `torch.autograd.forward_ad`.
    """
    if inputs.ndim != 3:
        raise ValueError("inputs must be [batch, heads, length]")
    _check_scan(inputs, transition, b, c, state, skip)
    dtype = torch.promote_types(inputs.dtype, torch.float32)
    skip = None if skip is None else skip.to(transition.dtype)
    function = _operation("ssm_scan", inputs)
    tensors = (inputs, transition, b, c, skip, state)
    if inputs.dtype != dtype or state.dtype != dtype:
        tensors = (inputs.to(dtype), transition, b, c, skip, state.to(dtype))
    wants_gradient = torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in tensors)
    if wants_gradient or torch.compiler.is_compiling():
        outputs, last = function(*tensors, gelu and not wants_gradient)
    else:
        # the gradient's part is in Python: to pass through it takes long beside a short scan
        with torch._C._AutoDispatchBelowAutograd():
            outputs, last = function(*tensors, gelu)
    if gelu and wants_gradient:
        outputs = torch.nn.functional.gelu(outputs)
    if outputs.dtype == inputs.dtype:
        return outputs, last
    return outputs.to(inputs.dtype), last.to(inputs.dtype)


def ssm_step_(
    outputs: torch.Tensor,
    state: torch.Tensor,
    inputs: torch.Tensor,
    increment: torch.Tensor,
    tail: torch.Tensor | None,
    b: torch.Tensor,
    c: torch.Tensor,
    skip: torch.Tensor | None = None,
    left: torch.Tensor | None = None,
    right: torch.Tensor | None = None,
) -> None:
    """
    One step `x <- x + D x - U V^T x + b u`, `y = c x + skip u` in place, all in one dtype, and without a gradient.

    Args:
        outputs: written to: y `[batch, channels, heads]`, or its numbers in another shape; contiguous.
        state: replaced: x `[batch, heads, groups, 2]`; contiguous.
        inputs: u `[batch, heads]`, or `[batch, 1, heads]`; float32 or float64.
        increment: p and q `[heads, groups, 2]` of the blocks `[[p, -q], [q, p]]` of D, which is the transition without
            the identity: slow modes keep more digits.
        tail: what rounding took away from the increment, of the same shape.
        b: `[heads, groups, 2]`.
        c: `[heads, channels, groups, 2]`.
        skip: `[channels, heads]`.
        left: U `[heads, rank, groups, 2]`, zero by default.
        right: V, of the same shape.

    Raises:
        RuntimeError: for dtypes, shapes, numbers and devices that do not fit.
        NotImplementedError: if a gradient is wanted, and within `torch.func.jvp` and `torch.autograd.forward_ad`.
    """
    _device.refuse_tangents()
    tensors = (state, inputs, increment, b, c, skip, left, right)
    if torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in tensors):
        raise NotImplementedError("S4's compiled step has no gradient; call it within torch.no_grad().")
    # which checks all: the whole step takes less time than checks in Python would
    _step_(outputs, state, inputs, increment, tail, b, c, skip, left, right)


def ssm_step(
    inputs: torch.Tensor,
    increment: torch.Tensor,
    tail: torch.Tensor | None,
    b: torch.Tensor,
    c: torch.Tensor,
    state: torch.Tensor,
    skip: torch.Tensor | None = None,
    left: torch.Tensor | None = None,
    right: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The same step, not in place; the arguments are those of `ssm_step_`.

    Returns:
        y `[batch, channels, heads]` and the new state, in the dtype of the inputs.

    Raises:
        RuntimeError: for dtypes, shapes and devices that do not fit.
        NotImplementedError: if a gradient is wanted, and within `torch.func.jvp` and `torch.autograd.forward_ad`.
    """
    last = state.clone(memory_format=torch.contiguous_format)
    outputs = inputs.new_empty(inputs.shape[0], c.shape[1], inputs.shape[-1])
    ssm_step_(outputs, last, inputs, increment, tail, b, c, skip, left, right)
    return outputs, last


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
        length: of the kernels, 1 ... 2**32.
        dtype: the sums' real one, float32 or float64; quotients are exact to their last digits in both.

    Returns:
        The values at nodes 0 ... length // 2, complex `[heads, channels, length // 2 + 1]`.

    Raises:
        TypeError: for dtypes, and ValueError for shapes and devices that do not fit.
        NotImplementedError: within `torch.func.jvp` and `torch.autograd.forward_ad`.
    """
    _check_length(length)
    if inputs.ndim != 3 or outputs.ndim != 3:
        raise ValueError("inputs and outputs must be [heads, rows, state]")
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
        length: 1 ... 2**32.
        dtype: of the result and of the sums, float32 or float64; powers are in double precision.

    Returns:
        `[heads, rows, length]`.

    Raises:
        TypeError: for dtypes, and ValueError for shapes and devices that do not fit.
        NotImplementedError: within `torch.func.jvp` and `torch.autograd.forward_ad`.
    """
    _check_length(length)
    if coefficients.ndim != 3 or coefficients.shape[2] == 0:
        raise ValueError("coefficients must be [heads, rows, state], with states")
    if dtype not in REAL:
        raise TypeError(f"kernels are float32 or float64, not {dtype}")
    heads, rows, state = coefficients.shape
    _check("coefficients", coefficients, (heads, rows, state), torch.complex128, coefficients.device)
    _check("base", base, (heads, state), torch.complex128, coefficients.device)
    return _operation("vandermonde", base)(coefficients, base, length, dtype == torch.float32)


__all__ = ["cauchy", "devices", "ssm_scan", "ssm_step", "ssm_step_", "vandermonde"]
