"""
The operations on GPUs, made of a few kernels: products of a signal's chunks and matrices, and a scan over the chunks.

The matrices and other tables are small. They are made in torch, in float64, and so are their gradients.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

from ._ops import add_op_namespace_prefix, ops
from ._raw import DEVICES, raw
from ._step import ssm_step_


STEPS = 64  # in a chunk
NODES = 128  # in a tile of `cauchy`


def _orbit(matrix: torch.Tensor, vectors: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors `[..., size, k]` times the first `count` powers of a matrix, a power of two, and its last power."""
    while count > 1:
        vectors = torch.cat([vectors, matrix @ vectors], dim=-1)
        matrix, count = matrix @ matrix, count // 2
    return vectors, matrix


def _toeplitz(kernel: torch.Tensor) -> torch.Tensor:
    """`[..., j, t]` is `kernel[..., t - j]`, or zero: rows of a period that is one longer than a row."""
    steps = kernel.shape[-1]
    period = torch.cat([kernel, torch.zeros_like(kernel)], dim=-1)[..., None, :]
    rows = period.expand(*kernel.shape[:-1], steps, 2 * steps).flatten(-2)[..., : steps * (2 * steps - 1)]
    return rows.unflatten(-1, (steps, -1))[..., :steps]


def ssm_scan(
    inputs: torch.Tensor,
    transition: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    skip: torch.Tensor | None,
    state: torch.Tensor,
    gelu: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    length, dtype = inputs.shape[-1], inputs.dtype
    steps = min(STEPS, 1 << (length - 1).bit_length())
    a, b, c = transition.double(), b.double(), c.double()
    responses, leap = _orbit(a, b[..., None], steps)
    readouts, _ = _orbit(a.mT, a.mT @ c.movedim(1, -1), steps)
    readouts = readouts.unflatten(-1, (steps, -1)).permute(0, 4, 1, 2, 3).flatten(2, 3)
    responses = responses.flatten(1, 2)
    kernel = c.flatten(2) @ responses
    if skip is not None:
        kernel = torch.cat([kernel[..., :1] + skip.double().mT[..., None], kernel[..., 1:]], dim=-1)
    last_leap = torch.linalg.matrix_power(a, length - (length - 1) // steps * steps)
    tables = (_toeplitz(kernel), responses.flip(-1).mT, readouts, leap, last_leap)
    rounded = (table.to(dtype).contiguous() for table in tables)
    outputs, last = ops.scan_chunks(inputs, *rounded, state.flatten(2).contiguous(), gelu)
    return outputs, last.unflatten(2, transition.shape[1:3])


def _like(inputs: torch.Tensor, *rows: int) -> torch.Tensor:
    """Memory for `[batch, *rows, heads, length]`, heads innermost if they are in that of the inputs."""
    batch, heads, length = inputs.shape
    if inputs.stride(1) < inputs.stride(2):
        return inputs.new_empty(batch, length, *rows, heads).movedim(1, -1)
    return inputs.new_empty(batch, *rows, heads, length)


def _states(
    inputs: torch.Tensor, increments: torch.Tensor, leap: torch.Tensor, last_leap: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """States before each chunk, `[batch, heads, chunks, state]`, and after the last one, which may be shorter."""
    (batch, heads, length), (_, steps, count) = inputs.shape, increments.shape
    start = (length - 1) // steps * steps
    added = inputs.new_empty(batch, heads, start // steps + 1, count)
    states, last = torch.empty_like(added), torch.empty_like(state)
    raw.multiply(added[:, :, :-1], inputs[..., :start], increments, None, None, steps, False, False)
    late = increments[:, start + steps - length :]
    raw.multiply(added[:, :, -1:], inputs[..., start:], late, None, None, length - start, False, False)
    raw.scan(states, added, leap, last_leap, state, last, False)
    return states, last


def _scan_chunks(
    inputs: torch.Tensor,
    toeplitz: torch.Tensor,
    increments: torch.Tensor,
    readouts: torch.Tensor,
    leap: torch.Tensor,
    last_leap: torch.Tensor,
    state: torch.Tensor,
    gelu: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    steps, channels = increments.shape[1], readouts.shape[1]
    states, last = _states(inputs, increments, leap, last_leap, state)
    outputs = _like(inputs, channels)
    for r in range(channels):
        raw.multiply(outputs[:, r], inputs, toeplitz[:, r], states, readouts[:, r], steps, False, True, gelu)
    return outputs, last


def _blocks(products: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The diagonal blocks of `[heads, groups * size, groups * size]`."""
    groups, size = like.shape[1:3]
    return products.view(-1, groups, size, groups, size).diagonal(dim1=1, dim2=3).movedim(-1, 1).contiguous()


def _scan_chunks_backward(
    of_outputs: torch.Tensor,
    of_last: torch.Tensor,
    inputs: torch.Tensor,
    toeplitz: torch.Tensor,
    increments: torch.Tensor,
    readouts: torch.Tensor,
    leap: torch.Tensor,
    last_leap: torch.Tensor,
    state: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    (heads, steps, count), channels, length = increments.shape, readouts.shape[1], inputs.shape[-1]
    start = (length - 1) // steps * steps
    early, late, of_early, of_late = (*inputs.tensor_split([start], -1), *of_outputs.tensor_split([start], -1))
    states, _ = _states(inputs, increments, leap, last_leap, state)
    added, of_states, of_state = torch.empty_like(states), torch.empty_like(states), torch.empty_like(state)
    of_inputs, of_toeplitz, of_readouts = _like(inputs), torch.empty_like(toeplitz), torch.empty_like(readouts)
    for r in range(channels):
        raw.multiply(added, of_outputs[:, r], readouts[:, r].mT, None, None, steps, r > 0, False)
        raw.correlate(of_toeplitz[:, r], inputs, of_outputs[:, r], steps)
        raw.correlate(of_readouts[:, r], states, of_outputs[:, r], steps)
    raw.scan(of_states, added, leap.mT, last_leap.mT, of_last.contiguous(), of_state, True)
    for r in range(channels):
        # the states are in the product with the first channel only
        after = of_states if r == 0 else None
        parts = (
            (of_early, of_inputs[..., :start], slice(0, -1), 0),
            (of_late, of_inputs[..., start:], slice(-1, None), start + steps - length),
        )
        for part, to, chunks, skipped in parts:
            maps = (None, None) if after is None else (after[:, :, chunks], increments[:, skipped:].mT)
            size = steps - skipped
            raw.multiply(to, part[:, r], toeplitz[:, r, :size, :size].mT, *maps, size, r > 0, False)
    of_increments, of_late_increments = (
        torch.empty_like(increments),
        increments.new_empty(heads, length - start, count),
    )
    raw.correlate(of_increments, early, of_states[:, :, :-1], steps)
    raw.correlate(of_late_increments, late, of_states[:, :, -1:], length - start)
    of_increments[:, start + steps - length :] += of_late_increments
    products, late_products = (increments.new_empty(heads, count, count) for _ in range(2))
    raw.correlate(products, of_states[:, :, :-1], states[:, :, :-1], steps)
    raw.correlate(late_products, of_states[:, :, -1:], states[:, :, -1:], steps)
    leaps = _blocks(products, leap), _blocks(late_products, leap)
    return of_inputs, of_toeplitz, of_increments, of_readouts, *leaps, of_state


def _powers(base: torch.Tensor, count: int) -> torch.Tensor:
    powers, square = torch.ones_like(base)[..., None], base
    while powers.shape[-1] < count:
        powers = torch.cat([powers, powers * square[..., None]], dim=-1)
        square = square * square
    return powers[..., :count]


def vandermonde(coefficients: torch.Tensor, base: torch.Tensor, length: int, single: bool) -> torch.Tensor:
    dtype, width = torch.float32 if single else torch.float64, 1 << max(1, math.ceil(math.log2(length) / 2))
    fine = _powers(base, width)
    coarse = _powers(fine[..., -1] * base, -(-length // width))
    left = (coefficients[..., None] * coarse[:, None]).movedim(1, 0).mT
    left = torch.cat([2 * left.real, -2 * left.imag], dim=-1)
    tables = (left, torch.cat([fine.real, fine.imag], dim=1))
    return ops.power_sums(*(table.to(dtype).contiguous() for table in tables), length)


def _power_sums(left: torch.Tensor, fine: torch.Tensor, length: int) -> torch.Tensor:
    sums = left.new_empty(left.shape[1], left.shape[0], length)
    raw.multiply(sums.movedim(1, 0), left, fine, None, None, fine.shape[2], False, False)
    return sums


def _power_sums_backward(
    gradient: torch.Tensor, left: torch.Tensor, fine: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    of_left, of_fine, gradient = torch.empty_like(left), torch.empty_like(fine), gradient.movedim(1, 0)
    raw.multiply(of_left, gradient, fine.mT, None, None, fine.shape[2], False, False)
    raw.correlate(of_fine, left, gradient, fine.shape[2])
    return of_left, of_fine


def cauchy(
    inputs: torch.Tensor, outputs: torch.Tensor, poles: torch.Tensor, length: int, single: bool
) -> torch.Tensor:
    """
    Sums of poles, in which a state and its conjugate are one quotient.

    With c and s the cosine and sine of half a node's angle, it is `(-2 c Re(v conj(w)) + 4 i s Re(v)) / (A + i B)`,
    `A = |w|^2 c^2 - 4 s^2`, `B = -4 s c Re(w)`.
    """
    dtype, size = torch.float32 if single else torch.float64, poles.abs()
    # a power of two that keeps the squares of quotients and of their inverses in the range of float32
    scale = torch.ldexp(torch.ones_like(size), 28 - torch.frexp(size.detach().clamp(min=2)).exponent)
    products = inputs[:, :, None] * outputs[:, None]
    weights = torch.stack([-2 * (products * poles.conj()[:, None, None]).real, 2 * products.real], dim=1)
    weights = (weights * (scale * scale)[:, None, None, None]).to(dtype).contiguous()
    return torch.view_as_complex(ops.pole_sums(weights, size, -poles.real * scale * scale, scale, length))


def _halves(exact: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    """Two parts; in float32 the first has 12 digits, so that products of two of those are exact."""
    high = exact if dtype == torch.float64 else (exact.float().view(torch.int32) & -4096).view(torch.float32)
    return [high, (exact - high).to(dtype)]


def _pole_tables(
    size: torch.Tensor, decay: torch.Tensor, scale: torch.Tensor, length: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each state and for each node, numbers of `dtype`; those that are subtracted in two parts."""
    angles = torch.arange(length // 2 + 1, dtype=torch.float64, device=size.device) * (math.pi / length)
    cosine, sine = angles.cos(), 2 * angles.sin()
    parts = [part for exact in (size.detach(), cosine, sine) for part in _halves(exact, dtype)]
    nodes = torch.stack([*parts[2:], (2 * cosine * sine).to(dtype)])
    return torch.stack([*parts[:2], decay.to(dtype), scale.to(dtype)], dim=1), nodes


def _pole_sums(
    weights: torch.Tensor, size: torch.Tensor, decay: torch.Tensor, scale: torch.Tensor, length: int
) -> torch.Tensor:
    states, nodes = _pole_tables(size, decay, scale, length, weights.dtype)
    heads, _, ins, outs, _ = weights.shape
    spectrum = weights.new_empty(heads, outs - ins + 1, length // 2 + 1, 2)
    raw.pole_sums_of(spectrum, weights, states, nodes)
    return spectrum


def _pole_sums_backward(
    gradient: torch.Tensor,
    weights: torch.Tensor,
    size: torch.Tensor,
    decay: torch.Tensor,
    scale: torch.Tensor,
    length: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    states, nodes = _pole_tables(size, decay, scale, length, weights.dtype)
    tiles, state = -(-nodes.shape[1] // NODES), weights.shape[-1]
    of_weights = weights.new_empty(len(weights), tiles, *weights.shape[1:])
    of_states = weights.new_empty(len(weights), tiles, 2, state)
    raw.pole_sums_backward_of(of_weights, of_states, gradient.contiguous(), weights, states, nodes)
    of_square, of_decay = of_states.sum(1, dtype=torch.float64).unbind(1)
    return of_weights.sum(1), 2 * size * scale * scale * of_square, of_decay


_SCAN = (
    "Tensor inputs, Tensor toeplitz, Tensor increments, Tensor readouts, Tensor leap, Tensor last_leap, Tensor state"
)
_SUMS = "Tensor weights, Tensor size, Tensor decay, Tensor scale, int length"
_OPERATIONS: dict[str, tuple[Callable[..., Any], str]] = {
    "scan_chunks": (_scan_chunks, f"({_SCAN}, bool gelu) -> (Tensor, Tensor)"),
    "scan_chunks_backward": (
        _scan_chunks_backward,
        f"(Tensor of_outputs, Tensor of_last, {_SCAN}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    ),
    "power_sums": (_power_sums, "(Tensor left, Tensor fine, int length) -> Tensor"),
    "power_sums_backward": (_power_sums_backward, "(Tensor gradient, Tensor left, Tensor fine) -> (Tensor, Tensor)"),
    "pole_sums": (_pole_sums, f"({_SUMS}) -> Tensor"),
    "pole_sums_backward": (_pole_sums_backward, f"(Tensor gradient, {_SUMS}) -> (Tensor, Tensor, Tensor)"),
}


def refuse(ctx: Any, *gradients: Any) -> Any:
    raise NotImplementedError("S4's compiled operations have first derivatives only.")


def refuse_tangents() -> None:
    """Raises `NotImplementedError` in forward mode, whose tangents custom operations would lose without a word."""
    if forward_ad._current_level >= 0:  # also within torch.func.jvp and jacfwd
        raise NotImplementedError(
            "S4's compiled operations have no forward-mode derivatives (torch.func.jvp, torch.autograd.forward_ad). "
            "The variant torch-cpu, which is plain torch, has them."
        )


def register_gradient(name: str, backward: Callable[..., Any], setup_context: Callable[..., None] | None) -> None:
    """The first derivative of an operation, and errors for others."""

    def checked(ctx: Any, *gradients: torch.Tensor) -> Any:
        refuse_tangents()  # of the gradients
        return backward(ctx, *gradients)

    torch.library.register_autograd(add_op_namespace_prefix(name), checked, setup_context=setup_context)


def _empty_like_all(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in tensors)


_FAKES: dict[str, Callable[..., Any]] = {
    "scan_chunks": lambda u, _, e, r, leap, last, x, gelu: (_like(u, r.shape[1]), x.new_empty(x.shape)),
    "scan_chunks_backward": lambda y, last, u, *tables: (_like(u), *_empty_like_all(*tables)),
    "power_sums": lambda left, fine, length: left.new_empty(left.shape[1], left.shape[0], length),
    "power_sums_backward": lambda gradient, left, fine: _empty_like_all(left, fine),
    "pole_sums": lambda w, size, decay, scale, length: w.new_empty(
        len(w), w.shape[3] - w.shape[2] + 1, length // 2 + 1, 2
    ),
    "pole_sums_backward": lambda gradient, w, size, decay, scale, length: _empty_like_all(w, size, decay),
}


def save_scan(ctx: Any, inputs: tuple, output: Any) -> None:
    *tensors, gelu = inputs
    if gelu:
        raise NotImplementedError("A scan with GELU has no gradient; apply GELU to what it returns without.")
    ctx.save_for_backward(*tensors)


def _save(ctx: Any, inputs: tuple, output: Any) -> None:
    ctx.save_for_backward(*(part for part in inputs if isinstance(part, torch.Tensor)))
    ctx.length = inputs[-1]


_SAVES: dict[str, Callable[..., None]] = {"scan_chunks": save_scan, "power_sums": _save, "pole_sums": _save}
_BACKWARDS: dict[str, Callable[..., Any]] = {
    "scan_chunks": lambda ctx, *gradients: (*ops.scan_chunks_backward(*gradients, *ctx.saved_tensors), None),
    "power_sums": lambda ctx, gradient: (*ops.power_sums_backward(gradient, *ctx.saved_tensors), None),
    "pole_sums": lambda ctx, gradient: (
        *ops.pole_sums_backward(gradient, *ctx.saved_tensors, ctx.length),
        None,
        None,
    ),
}


if DEVICES:
    for _name, (_function, _schema) in _OPERATIONS.items():
        _operator = add_op_namespace_prefix(_name)
        torch.library.define(_operator, _schema)
        torch.library.impl(_operator, DEVICES, _function)
        torch.library.register_fake(_operator, _FAKES[_name])
        register_gradient(_name, _BACKWARDS.get(_name, refuse), _SAVES.get(_name))
    torch.library.impl(add_op_namespace_prefix("ssm_step_"), DEVICES, ssm_step_)
