"""Coefficients of S4's recurrence: the modes of a state space, their stored form, and its errors."""

from typing import NamedTuple, Self

import torch

from .scan import blocks_of, krylov


def to_modal_form(
    transition: torch.Tensor, b: torch.Tensor, c: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Real systems in the basis of their eigenvectors, by complex128 arithmetic.

    Args:
        transition: `[heads, 1, state, state]`, float64, with an even state.
        b: `[heads, 1, state]`.
        c: `[heads, channels, 1, state]`.

    Returns:
        The same systems as pairs `[heads, state / 2, 2, 2]`, `[heads, state / 2, 2]` and
        `[heads, channels, state / 2, 2]`: a pair is real and imaginary part of one mode, or two real modes. And the
        map `[heads, state, state]` from a state to the pairs.
    """
    device, half = transition.device, transition.shape[-1] // 2
    # LAPACK's, also for accelerators: theirs are slower, and this is done once
    values, vectors = torch.linalg.eig(transition[:, 0] if transition.is_meta else transition[:, 0].cpu())
    values, order = _sort_by_imaginary_part(values.to(device))
    vectors = vectors.to(device).gather(-1, order[:, None].expand_as(vectors))
    rows = torch.linalg.inv_ex(vectors).inverse  # not finite for a defective matrix
    index = torch.arange(half, device=device)
    num_complex = (values.imag > 0).sum(-1, keepdim=True)
    is_complex = index < num_complex
    # conjugate pairs first, by their upper half, then the real ones two by two
    first = torch.where(is_complex, index, 2 * index - num_complex)
    second = torch.where(is_complex, first, first + 1)

    def pick(source: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        return source.gather(1, places[..., None].expand(-1, -1, source.shape[-1]))

    one, two = (values.gather(1, places) for places in (first, second))
    # a mode re + i im acts on its real and imaginary part as [[re, -im], [im, re]]
    off = torch.where(is_complex, one.imag, 0)
    pairs = torch.stack([one.real, -off, off, torch.where(is_complex, one.real, two.real)], dim=-1)
    chosen = pick(rows, second)
    to_pairs = torch.stack([pick(rows, first).real, torch.where(is_complex[..., None], chosen.imag, chosen.real)], 2)
    outputs = c[:, :, 0].to(vectors) @ vectors
    upper, lower = (pick(outputs.mT, places).mT for places in (first, second))
    # 2 Re(c z) = 2 Re c Re z - 2 Im c Im z, of a mode z and its conjugate; c z of a real one
    outputs = torch.stack(
        [
            torch.where(is_complex[:, None], 2 * upper.real, upper.real),
            torch.where(is_complex[:, None], -2 * lower.imag, lower.real),
        ],
        dim=-1,
    )
    to_pairs = to_pairs.flatten(1, 2)
    inputs = (to_pairs @ b.mT).view(len(b), half, 2)
    return pairs.unflatten(-1, (2, 2)), inputs, outputs, to_pairs


def _sort_by_imaginary_part(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    order = values.imag.argsort(stable=True, dim=-1, descending=True)
    return values.gather(-1, order), order


def sampled_kernel(transition: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """Impulse responses `[heads, channels, samples]` at lags 0 ... 63 and 64 from each power of two up to 8192 on."""
    columns, chunk_transition = krylov(transition, b[..., None], 64)
    # [heads, state, 64]; chunk_transition leaps 64 steps, and twice as many after each round
    columns, row = columns.flatten(1, 2), c
    samples = [row.flatten(2) @ columns]
    for _ in range(8):
        moved = (row.movedim(1, 2).contiguous() @ chunk_transition).movedim(2, 1)
        samples.append(moved.flatten(2) @ columns)
        chunk_transition = chunk_transition @ chunk_transition
    return torch.cat(samples, dim=-1)


def kernel_errors(exact: torch.Tensor, system: "Coefficients") -> torch.Tensor:
    """
    How far kernels are from the exact ones because coefficients and states are rounded.

    Args:
        exact: `sampled_kernel` of the exact system, float64.
        system: what is stored of it.

    Returns:
        `[heads]`, relative to the peaks of the kernels.
    """
    transition, b, c = system.in_precision(exact.dtype)
    peak = exact.abs().amax((1, 2)).clamp(min=torch.finfo(exact.dtype).tiny)
    # in the precision of the exact kernels: what is left is the error of the stored numbers
    difference = (sampled_kernel(transition, b, c) - exact).abs().amax((1, 2))
    # terms that are larger than their sum lose digits, each its own
    canceled = torch.finfo(system.b.dtype).eps * (c * b[:, None]).square().sum((2, 3)).sqrt().amax(1)
    return (difference + canceled) / peak


class Coefficients(NamedTuple):
    """
    A discrete system in the dtype that it is stored in.

    Attributes:
        increment: transition without the identity, so that slow modes, whose errors add up over many steps, keep more
            digits; `[heads, groups, size, size]`, or `[heads, groups, 2]`, of which `blocks_of` makes that.
        b: `[heads, groups, size]`.
        c: `[heads, channels, groups, size]`.
        rounding_residual: for pairs of modes, what rounding took away from the increment.
    """

    increment: torch.Tensor
    b: torch.Tensor
    c: torch.Tensor
    rounding_residual: torch.Tensor | None

    @classmethod
    def of(cls, transition: torch.Tensor, b: torch.Tensor, c: torch.Tensor, dtype: torch.dtype) -> Self:
        """From a system in float64."""
        exact = transition - torch.eye(transition.shape[-1], dtype=transition.dtype, device=transition.device)
        increment = exact.to(dtype)
        # a dense matrix would be twice as large, for modes that no longer ring for as long
        rounding_residual = (exact - increment).to(dtype) if transition.shape[-1] == 2 else None
        return cls(increment, b.to(dtype), c.to(dtype), rounding_residual)

    def as_rotations(self) -> Self:
        """Without the second columns of blocks `[[p, -q], [q, p]]`, as those of diagonal systems are."""
        rounding_residual = None if self.rounding_residual is None else self.rounding_residual[..., 0].contiguous()
        return self._replace(increment=self.increment[..., 0].contiguous(), rounding_residual=rounding_residual)

    def of_heads(self, heads: torch.Tensor) -> Self:
        """A part of the heads, by their numbers."""
        rounding_residual = None if self.rounding_residual is None else self.rounding_residual[heads]
        return type(self)(self.increment[heads], self.b[heads], self.c[heads], rounding_residual)

    def in_precision(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Transition, b and c in a dtype, as `ssm_scan` takes them."""
        increment = blocks_of(self.increment).to(dtype)
        transition = torch.eye(increment.shape[-1], dtype=dtype, device=increment.device) + increment
        if self.rounding_residual is not None:
            transition = transition + blocks_of(self.rounding_residual).to(dtype)
        return transition, self.b.to(dtype), self.c.to(dtype)


__all__ = ["Coefficients", "kernel_errors", "sampled_kernel", "to_modal_form"]
