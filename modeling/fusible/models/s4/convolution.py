"""
The kernels of S4's convolution: sums of powers and of poles, in which S4 spends its time when it trains.

`cauchy` and `vandermonde` are specifications as well: exact, differentiable, pure functions of plain tensors. None of
them makes a tensor of heads * state * length elements. Where compiled kernels are given that there are for the device
of the tensors, they do the work.
"""

import math
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from ...kernels.loading import Kernels, is_transformed, usable_kernels


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
    # the last fine power is width - 1; blocks are rounded up, and what is too long is cut off later
    return fine, _powers(fine[..., -1] * base, -(-length // width))


def _power_sums(weights: torch.Tensor, fine: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
    """`sum_l weights[h, r, l] * base[h, n] ** l`: real `[heads, rows, length]` to complex `[heads, rows, state]`."""
    width, blocks = fine.shape[-1], coarse.shape[-1]
    weights = torch.nn.functional.pad(weights, (0, width * blocks - weights.shape[-1]))
    weights = weights.reshape(len(weights), -1, width)
    # [heads, rows * blocks, state]; weights are real, so that two real products are enough
    inner = torch.complex(weights @ fine.real.mT, weights @ fine.imag.mT)
    return (inner.unflatten(1, (-1, blocks)).mT * coarse[:, None]).sum(-1)


def _vandermonde_sums(coefficients: torch.Tensor, base: torch.Tensor, length: int) -> torch.Tensor:
    fine, coarse = _two_levels(base, length)
    left = (coefficients[..., None] * coarse[:, None]).mT
    # 2 Re(x y) = 2 Re x Re y - 2 Im x Im y: one real product over [heads, rows * blocks, 2 * state]
    left = torch.cat([2 * left.real, -2 * left.imag], dim=-1).flatten(1, 2)
    sums = left @ torch.cat([fine.real, fine.imag], dim=1)
    return sums.unflatten(1, (-1, coarse.shape[-1])).flatten(2)[..., :length]


class _Vandermonde(torch.autograd.Function):
    """Saves its arguments only, and makes the powers anew for the gradient."""

    @staticmethod
    def forward(ctx: Any, coefficients: torch.Tensor, base: torch.Tensor, length: int) -> torch.Tensor:
        ctx.save_for_backward(coefficients, base)
        ctx.length = length
        return _vandermonde_sums(coefficients, base, length)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        coefficients, base = ctx.saved_tensors
        fine, coarse = _two_levels(base, ctx.length)
        gradient = 2 * gradient
        # torch's gradient by a complex number is the conjugate of the derivative
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
    compiled = usable_kernels(kernels, base)
    if compiled is not None and base.dtype == torch.complex128:
        return compiled.vandermonde(coefficients, base, length, dtype)
    # transforms take the sums apart, at the cost of their memory
    sums = _vandermonde_sums if is_transformed() else _Vandermonde.apply
    return sums(coefficients, base, length).to(dtype)


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
        # irfft counts those twice; each is in the half spectrum, and so in the gradient, once
        gradient = torch.cat([gradient[..., :1], gradient[..., 1:last] / 2, gradient[..., last:]], dim=-1)
        return torch.fft.irfft(gradient, n=length, norm="forward")[..., :size], None


def real_fft(signal: torch.Tensor, length: int) -> torch.Tensor:
    """Half the spectrum `[..., length // 2 + 1]` of a real signal `[..., <= length]`, which zeros are added to."""
    return torch.fft.rfft(signal, n=length) if is_transformed() else _RealFFT.apply(signal, length)


def roots_of_unity(length: int, like: torch.Tensor) -> torch.Tensor:
    """`exp(-2 pi i k / length)` for k = 0 ... length // 2, in the dtype and on the device of a complex tensor."""
    # each from its own angle: powers of one root lose more digits the larger k is
    angles = torch.arange(length // 2 + 1, dtype=like.real.dtype, device=like.device) * (-2 * math.pi / length)
    return torch.polar(torch.ones_like(angles), angles)


def _one_minus_power(poles: torch.Tensor, length: int) -> torch.Tensor:
    """`1 - ((2 + w) / (2 - w)) ** length`, exact where the base is close to 1 or -1."""
    is_large = poles.abs() > 2
    near = torch.where(is_large, 4 / poles, poles)  # whose base is -1 times that of the large one
    real, imaginary = near.real, near.imag
    # |base|^2 - 1, without the difference of two numbers close to each other
    size = 8 * real / ((2 - real) ** 2 + imaginary**2)
    logarithm = torch.complex(torch.log1p(size) / 2, torch.atan2(4 * imaginary, 4 - real**2 - imaginary**2))
    change = torch.expm1(length * logarithm)
    # the base of a large pole has the factor -1, whose power is -1 for odd lengths
    return torch.where(is_large, 2 + change, -change) if length % 2 else -change


def cauchy(products: torch.Tensor, poles: torch.Tensor, length: int) -> torch.Tensor:
    """
    Sums of poles at roots of unity: `sum_n v_n / (2 (1 - z_k) - w_n (1 + z_k))`, over v, w and their conjugates.

    `z_k = exp(-2 pi i k / length)`. This is the Cauchy kernel of S4 (section 3.3 of the paper) times `2 / (1 + z_k)`,
    which has no pole at `z_k = -1`. With `g = (2 + w) / (2 - w)`, a term is `v / (2 - w)` times
    `1 / (1 - g z) = (1 + g z + z^2 (g^2 - 1) / (1 - g z)) / (1 - z^2)`. As `z_k ** length = 1`, the last quotient is
    the discrete Fourier transform of a finite geometric series over `1 - g ** length`, which is far cheaper than many
    quotients. Without `g^2 - 1`, that would lose digits where g is close to 1 or -1: for very small and large steps.

    Args:
        products: v `[heads, rows, state]`, complex.
        poles: w `[heads, state]`, complex, with negative real parts.
        length: number of nodes.

    Returns:
        The values at nodes 0 ... length // 2, complex `[heads, rows, length // 2 + 1]`; the others are conjugate.
    """
    base, scaled = (2 + poles) / (2 - poles), products / (2 - poles)[:, None]
    # (g^2 - 1) / (1 - g^length)
    weights = 8 * poles / (2 - poles) ** 2 / _one_minus_power(poles, length)
    series = real_fft(vandermonde(scaled * weights[:, None], base, length), length)
    z = roots_of_unity(length, base)
    # 1 / (1 - z^2) is z conjugate over this difference, which is exact close to 1 and -1
    inverse = 1 / (z.conj() - z)
    # 1 - z^2 is 0 at z = 1 and -1, where the terms are -v / (2 w) and v / 4
    at_one, at_minus_one = torch.zeros_like(z), torch.zeros_like(z)
    at_one[0], inverse[0] = 0.5, 0
    if length % 2 == 0:
        at_minus_one[-1], inverse[-1] = 0.25, 0
    # of 1 / (1 - z^2), of g z / (1 - z^2), where z and its conjugate cancel, and of z = 1 and -1
    parts = scaled, scaled * base[:, None], -products / poles[:, None], products
    sums = torch.stack([part.sum(-1) for part in parts], dim=-1)
    constant = (sums + sums.conj()) @ torch.stack([z.conj() * inverse, inverse, at_one, at_minus_one])
    return torch.addcmul(constant, series, z * inverse)


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
    Kernels of bilinearly discretized systems with `A = diag(a) - sum_r p_r p_r^*` (Algorithm 1 of the paper).

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
    # all pairs of an input (B or P) and an output (C or P*) share their poles, and are summed together
    inputs, outputs = dt[:, None, None] * torch.cat([b[:, None], p], dim=1), torch.cat([c, p.conj()], dim=1)
    compiled = usable_kernels(kernels, a)
    if compiled is not None and a.dtype == torch.complex128:
        return torch.fft.irfft(compiled.cauchy(inputs, outputs, a * dt[:, None], length), n=length)
    products = inputs[:, :, None] * outputs[:, None]
    # [heads, 1 + rank, channels + rank, length // 2 + 1]
    table = cauchy(products.flatten(1, 2), a * dt[:, None], length).unflatten(1, products.shape[1:3])
    factor = 1 + roots_of_unity(length, a)
    # Woodbury's identity, one row of the low-rank part after another
    for last in range(rank, 0, -1):
        row, column = table[:, last], table[:, :, channels + last - 1]
        scale = factor / (1 + factor * row[:, channels + last - 1])
        table = table[:, :last, : channels + last - 1] - (
            column[:, :last, None] * (scale[:, None] * row[:, : channels + last - 1])[:, None]
        )
    return torch.fft.irfft(2 * table[:, 0], n=length)


__all__ = ["cauchy", "low_rank_kernel", "real_fft", "vandermonde"]
