"""
The functions in which S4 spends its time, and the kernel of a low-rank corrected system made of them.

`cauchy`, `vandermonde`, `ssm_scan` and `ssm_step` are specifications as well: exact, differentiable, pure functions of
plain tensors. None of them makes a tensor of heads * state * length elements. Where compiled kernels are given that
there are for the device of the tensors, they do the work.
"""

import math
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from .kernels_s4 import Kernels


CHUNK = 64  # steps that `ssm_scan` turns into one product of matrices


def _compiled(kernels: Kernels | None, tensor: torch.Tensor) -> Kernels | None:
    """Kernels, if there are any for the device of a tensor; not for exported programs, which other systems run."""
    if kernels is None or tensor.device.type not in kernels.devices or torch.compiler.is_exporting():
        return None
    return kernels


def _powers(base: torch.Tensor, count: int) -> torch.Tensor:
    """`base ** (0 ... count - 1)` in a new last dimension, each by at most `log2(count)` products."""
    powers, square = torch.ones_like(base)[..., None], base
    while powers.shape[-1] < count:
        powers = torch.cat([powers, powers * square[..., None]], dim=-1)
        square = square * square
    return powers[..., :count]


def _two_levels(base: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Powers 0 ... width - 1, and those of `base ** width`, about sqrt(length) of each."""
    width = 1 << math.ceil(math.log2(max(length, 1)) / 2)
    fine = _powers(base, width)
    return fine, _powers(fine[..., -1] * base, -(-length // width))


def _power_sums(weights: torch.Tensor, fine: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
    """`sum_l weights[h, r, l] * base[h, n] ** l`: real `[heads, rows, length]` to complex `[heads, rows, state]`."""
    width, blocks = fine.shape[-1], coarse.shape[-1]
    weights = torch.nn.functional.pad(weights, (0, width * blocks - weights.shape[-1]))
    weights = weights.reshape(len(weights), -1, width)
    inner = torch.complex(weights @ fine.real.mT, weights @ fine.imag.mT)
    return (inner.unflatten(1, (-1, blocks)).mT * coarse[:, None]).sum(-1)


class _Vandermonde(torch.autograd.Function):
    """Saves its arguments only, and makes the powers anew for the gradient."""

    @staticmethod
    def forward(ctx: Any, coefficients: torch.Tensor, base: torch.Tensor, length: int) -> torch.Tensor:
        ctx.save_for_backward(coefficients, base)
        ctx.length = length
        fine, coarse = _two_levels(base, length)
        left = (coefficients[..., None] * coarse[:, None]).mT
        left = torch.cat([2 * left.real, -2 * left.imag], dim=-1).flatten(1, 2)
        sums = left @ torch.cat([fine.real, fine.imag], dim=1)
        return sums.unflatten(1, (-1, coarse.shape[-1])).flatten(2)[..., :length]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        coefficients, base = ctx.saved_tensors
        fine, coarse = _two_levels(base, ctx.length)
        gradient = 2 * gradient
        of_coefficients = _power_sums(gradient, fine, coarse).conj()
        # d base ** l = l base ** (l - 1), shifted by one step so that nothing is divided by the base
        steps = torch.arange(1, ctx.length, dtype=gradient.dtype, device=gradient.device)
        of_base = coefficients * _power_sums(gradient[..., 1:] * steps, fine, coarse)
        return of_coefficients, of_base.sum(1).conj(), None


def vandermonde(
    coefficients: torch.Tensor,
    base: torch.Tensor,
    length: int,
    dtype: torch.dtype | None = None,
    kernels: Kernels | None = None,
) -> torch.Tensor:
    """
    Kernels of diagonal systems: `K[h, r, l] = 2 Re sum_n coefficients[h, r, n] * base[h, n] ** l`, for l < length.

    Powers are products of a fine and a coarse one, so that the sum is a real product of matrices: about
    `4 * heads * rows * state * length` operations, and memory for `2 * state * sqrt(length)` powers per head.

    Args:
        coefficients: `[heads, rows, state]`, complex; float64 precision is advisable, as phases grow with l.
        base: `[heads, state]`, complex.
        length: at least 1.
        dtype: of the result; by default that of the real parts.
        kernels: compiled ones, for complex128.

    Returns:
        `[heads, rows, length]`, real.
    """
    dtype = dtype or base.real.dtype
    compiled = _compiled(kernels, base)
    if compiled is not None and base.dtype == torch.complex128:
        return compiled.vandermonde(coefficients, base, length, dtype)
    return _Vandermonde.apply(coefficients, base, length).to(dtype)


class _RealFFT(torch.autograd.Function):
    """The gradient takes the half spectrum; torch's own makes a complex tensor of the full one."""

    @staticmethod
    def forward(ctx: Any, signal: torch.Tensor, length: int) -> torch.Tensor:
        ctx.sizes = signal.shape[-1], length
        return torch.fft.rfft(signal, n=length)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        size, length = ctx.sizes
        last = (length - 1) // 2 + 1  # of those that stand for two conjugate frequencies
        gradient = torch.cat([gradient[..., :1], gradient[..., 1:last] / 2, gradient[..., last:]], dim=-1)
        return torch.fft.irfft(gradient, n=length, norm="forward")[..., :size], None


def real_fft(signal: torch.Tensor, length: int) -> torch.Tensor:
    """Half the spectrum `[..., length // 2 + 1]` of a real signal `[..., <= length]`, which zeros are added to."""
    return _RealFFT.apply(signal, length)


def cauchy(products: torch.Tensor, poles: torch.Tensor, length: int) -> torch.Tensor:
    """
    Sums of poles at roots of unity: `sum_n v_n / (2 (1 - z_k) - w_n (1 + z_k))`, over v, w and their conjugates.

    `z_k = exp(-2 pi i k / length)`. This is the Cauchy kernel of S4 (section 3.3 of the paper) times `2 / (1 + z_k)`,
    which has no pole at `z_k = -1`. As `z_k ** length = 1`, the sum is the discrete Fourier transform of a finite
    geometric series, which is exact, and far cheaper than the quotients.

    Args:
        products: v `[heads, rows, state]`, complex.
        poles: w `[heads, state]`, complex, with negative real parts.
        length: number of nodes.

    Returns:
        The values at nodes 0 ... length // 2, complex `[heads, rows, length // 2 + 1]`; the others are conjugate.
    """
    base = (2 + poles) / (2 - poles)
    coefficients = products / ((2 - poles) * (1 - base**length))[:, None]
    return real_fft(vandermonde(coefficients, base, length), length)


def low_rank_kernel(
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    p: torch.Tensor,
    dt: torch.Tensor,
    length: int,
    kernels: Kernels | None = None,
) -> torch.Tensor:
    """
    Kernels of bilinearly discretised systems with `A = diag(a) - sum_r p_r p_r^*` (Algorithm 1 of the paper).

    Args:
        a: `[heads, state]`, complex.
        b: `[heads, state]`, complex.
        c: `[heads, channels, state]`, complex, multiplied by `I - dA ** length`.
        p: `[heads, rank, state]`, complex.
        dt: `[heads]`, real.
        length: of the kernel.
        kernels: compiled ones, for complex128.

    Returns:
        `[heads, channels, length]`, real.
    """
    rank, channels = p.shape[1], c.shape[1]
    inputs, outputs = dt[:, None, None] * torch.cat([b[:, None], p], dim=1), torch.cat([c, p.conj()], dim=1)
    compiled = _compiled(kernels, a)
    if compiled is not None and a.dtype == torch.complex128:
        return torch.fft.irfft(compiled.cauchy(inputs, outputs, a * dt[:, None], length), n=length)
    products = inputs[:, :, None] * outputs[:, None]
    table = cauchy(products.flatten(1, 2), a * dt[:, None], length).unflatten(1, products.shape[1:3])
    angles = torch.arange(length // 2 + 1, dtype=dt.dtype, device=dt.device) * (-2 * math.pi / length)
    factor = 1 + torch.polar(torch.ones_like(angles), angles)
    # Woodbury's identity, one row of the low-rank part after another
    for last in range(rank, 0, -1):
        row, column = table[:, last], table[:, :, channels + last - 1]
        scale = factor / (1 + factor * row[:, channels + last - 1])
        table = table[:, :last, : channels + last - 1] - (
            column[:, :last, None] * (scale[:, None] * row[:, : channels + last - 1])[:, None]
        )
    return torch.fft.irfft(2 * table[:, 0], n=length)


def _apply(transition: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Blocks `[..., size, size]` times vectors `[..., size, count]`."""
    if transition.shape[-1] == 2:  # products of matrices are slow for so small ones
        first, second = transition.unbind(-1)
        return first[..., None] * vectors[..., :1, :] + second[..., None] * vectors[..., 1:, :]
    return transition @ vectors


def orbit(transition: torch.Tensor, vectors: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Vectors multiplied by the powers of a transition, by doubling.

    Args:
        transition: `[..., size, size]`.
        vectors: `[..., size, k]`.
        count: a power of two.

    Returns:
        `[..., size, count * k]`, where column `j * k + i` is `transition ** j @ vectors[i]`; `transition ** count`.
    """
    while count > 1:
        vectors = torch.cat([vectors, _apply(transition, vectors)], dim=-1)
        transition, count = _apply(transition, transition), count // 2
    return vectors, transition


def ssm_scan(
    inputs: torch.Tensor,
    transition: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    state: torch.Tensor,
    skip: torch.Tensor | None = None,
    kernels: Kernels | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The recurrence `x_l = A x_{l-1} + b u_l`, `y_l = c x_l + D u_l`, with A of real blocks, in chunks.

    Inside a chunk all is a product of matrices; from chunk to chunk the state is passed on.

    Args:
        inputs: u `[batch, heads, length]`, real.
        transition: A `[heads, groups, size, size]`, real: pairs of modes with size 2, a dense matrix with groups 1.
        b: `[heads, groups, size]`.
        c: `[heads, channels, groups, size]`.
        state: x before the first step, `[batch, heads, groups, size]`.
        skip: D `[channels, heads]`, zero by default.
        kernels: compiled ones.

    Returns:
        y `[batch, channels, heads, length]` and the state after the last step, in the dtype of the inputs.
    """
    compiled = _compiled(kernels, inputs)
    if compiled is not None:
        return compiled.ssm_scan(inputs, transition, b, c, state, skip)
    length, channels = inputs.shape[-1], c.shape[1]
    chunk = min(CHUNK, 1 << (length - 1).bit_length())
    responses, leap = orbit(transition, b[..., None], chunk)
    outputs, _ = orbit(transition.mT, _apply(transition.mT, c.movedim(1, -1)), chunk)
    responses = responses.flatten(1, 2)
    outputs = outputs.unflatten(-1, (chunk, channels)).permute(0, 4, 3, 1, 2).flatten(3)
    kernel = c.flatten(2) @ responses
    state = state.movedim(0, -1).to(inputs.dtype)
    pieces = []
    for piece in inputs.split(length - length % chunk or length, dim=-1):
        width = min(chunk, piece.shape[-1])
        if width < chunk:
            leap = torch.linalg.matrix_power(transition, width)
        maps = [kernel[..., :width], responses[..., :width], outputs[:, :, :width], leap]
        kernel_map, response_map, output_map, leap_map = (part.to(inputs.dtype) for part in maps)
        blocks = piece.unflatten(-1, (-1, width))
        y, state = _scan_chunks(blocks, kernel_map, response_map, output_map, leap_map, state)
        pieces.append(y)
    y = torch.cat(pieces, dim=-1)
    if skip is not None:
        y = y + skip.to(y.dtype)[..., None] * inputs[:, None]
    return y, state.movedim(-1, 0)


def _scan_chunks(
    inputs: torch.Tensor,
    kernel: torch.Tensor,
    responses: torch.Tensor,
    outputs: torch.Tensor,
    leap: torch.Tensor,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    `ssm_scan` of whole chunks.

    Args:
        inputs: `[batch, heads, chunks, steps]`.
        kernel: `c A ** l b`, `[heads, channels, steps]`.
        responses: `A ** l b`, `[heads, groups * size, steps]`.
        outputs: `c A ** (l + 1)`, `[heads, channels, steps, groups * size]`.
        leap: `A ** steps`, `[heads, groups, size, size]`.
        state: `[heads, groups, size, batch]`.
    """
    (heads, channels, steps), (batch, _, chunks, _) = kernel.shape, inputs.shape
    time = torch.arange(steps, device=kernel.device)
    lag = time[:, None] - time
    toeplitz = torch.where(lag >= 0, kernel[..., lag.clamp(min=0)], 0).flatten(1, 2)
    columns = inputs.permute(1, 3, 2, 0).flatten(2)
    y = toeplitz @ columns
    increments = (responses.flip(-1) @ columns).view(*state.shape[:3], chunks, batch)
    before = []
    for increment in increments.unbind(3):
        before.append(state)
        state = _apply(leap, state) + increment
    y = torch.baddbmm(y, outputs.flatten(1, 2), torch.stack(before, dim=3).flatten(3).flatten(1, 2))
    y = y.view(heads, channels, steps, chunks, batch).permute(4, 1, 0, 3, 2)
    return y.flatten(3), state


def ssm_step(
    inputs: torch.Tensor,
    increment: torch.Tensor,
    tail: torch.Tensor | None,
    b: torch.Tensor,
    c: torch.Tensor,
    state: torch.Tensor,
    skip: torch.Tensor | None = None,
    kernels: Kernels | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    One step of `ssm_scan`, with all tensors of one dtype.

    Args:
        inputs: u `[batch, heads]`.
        increment: A without the identity, `[heads, groups, size, size]`.
        tail: what rounding took away from the increment.
        b: `[heads, groups, size]`.
        c: `[heads, channels, groups, size]`.
        state: x before the step, `[batch, heads, groups, size]`.
        skip: D `[channels, heads]`, zero by default.
        kernels: compiled ones, which have no gradient and are not used where one is wanted.

    Returns:
        y `[batch, channels, heads]` and the state after the step.
    """
    tensors = (inputs, increment, b, c, state, skip)
    wants_gradient = torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in tensors)
    compiled = _compiled(kernels, inputs)
    if compiled is not None and not wants_gradient:
        return compiled.ssm_step(inputs, increment, tail, b, c, state, skip)
    change = b * inputs[..., None, None]
    for part in (tail, increment):
        if part is not None:
            change = change + _apply(part, state.movedim(0, -1)).movedim(-1, 0)
    state = state + change
    y = (c.movedim(1, 0) * state[:, None]).sum((-2, -1))
    return (y if skip is None else y + skip * inputs[:, None]), state


__all__ = ["cauchy", "low_rank_kernel", "orbit", "real_fft", "ssm_scan", "ssm_step", "vandermonde"]
