"""
Initial state space models of S4: HiPPO matrices, their diagonal-plus-low-rank form, and diagonal ones.

HiPPO: https://huggingface.co/papers/2008.07669 and 2206.12037; normal plus low rank: 2111.00396, section 3 and
appendix C; diagonal ones: 2206.11893, section 4. All is computed in float64 and complex128.
"""

import math
from typing import NamedTuple

import torch


MEASURES = ("legs", "legt", "fout", "lagt")
DIAGONALS = ("lin", "inv", "inv2", "quad", "rand", "real")


class StateSpace(NamedTuple):
    """
    A system `x' = (diag(a) - sum_r p_r p_r^*) x + b u` whose other half is the complex conjugate.

    Attributes:
        a: `[state_size / 2]`, complex128; the half with negative imaginary parts, fastest first for HiPPO matrices.
        b: `[state_size / 2]`, complex128.
        p: `[rank, state_size / 2]`, complex128.
    """

    a: torch.Tensor
    b: torch.Tensor
    p: torch.Tensor


def hippo(measure: str, state_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The continuous system `x' = A x + B u` of a HiPPO measure.

    Args:
        measure: `"legs"`, `"legt"`, `"fout"` or `"lagt"`.
        state_size: number of coefficients; even for `"fout"`.

    Returns:
        A `[state_size, state_size]` and B `[state_size]`, float64.

    Raises:
        ValueError: for another measure.
    """
    index = torch.arange(state_size, dtype=torch.float64)
    root = (2 * index + 1).sqrt()
    if measure == "legs":
        return -(torch.outer(root, root).tril(-1) + torch.diag(index + 1)), root
    if measure == "legt":
        signs = torch.where(index[:, None] >= index, 1.0, (-1.0) ** (index[:, None] - index))
        # A and B are both halved, as in the authors' code
        return -torch.outer(root, root) * signs / 2, root / 2
    if measure == "lagt":
        ones = torch.ones(state_size, state_size, dtype=torch.float64)
        return -(ones.tril(-1) + torch.eye(state_size, dtype=torch.float64) / 2), torch.ones_like(root)
    if measure == "fout":
        b = torch.zeros(state_size, dtype=torch.float64)
        b[0::2] = math.sqrt(2)
        b[0] = 1
        # coordinates 2j and 2j + 1 rotate into each other at pi j
        speeds = torch.zeros(state_size - 1, dtype=torch.float64)
        speeds[0::2] = math.pi * index[: state_size // 2]
        return torch.diag(speeds, -1) - torch.diag(speeds, 1) - torch.outer(b, b), b
    raise ValueError(f"Unknown measure {measure!r}; known are {', '.join(MEASURES)}.")


def low_rank_correction(measure: str, state_size: int, rank: int = 1) -> torch.Tensor:
    """
    What makes a HiPPO matrix normal: `A + sum_r p_r p_r^T` is a multiple of the identity plus a skew matrix.

    Args:
        measure: as for `hippo`.
        state_size: as for `hippo`.
        rank: rows wanted; those that are not needed are zero.

    Returns:
        P `[rank, state_size]`, float64.

    Raises:
        ValueError: if the measure needs more rows: `"legt"` needs two.
    """
    index = torch.arange(state_size, dtype=torch.float64)
    if measure == "legt":
        row = (index + 0.5).sqrt()
        rows = torch.stack([row * (index % 2 == 1), row * (index % 2 == 0)])
    elif measure == "legs":
        rows = (index + 0.5).sqrt()[None]
    elif measure == "lagt":
        rows = torch.full((1, state_size), math.sqrt(0.5), dtype=torch.float64)
    else:
        # FouT is a skew matrix minus B B^T
        rows = hippo(measure, state_size)[1][None]
    if rank < len(rows):
        raise ValueError(f"The measure {measure!r} needs rank {len(rows)}; it is {rank}.")
    return torch.cat([rows, rows.new_zeros(rank - len(rows), state_size)])


def diagonalize(measure: str, state_size: int, rank: int = 1, b_clip: float | None = 2.0) -> StateSpace:
    """
    A HiPPO matrix in the unitary basis in which its normal part is diagonal.

    Eigenvectors have a real positive first entry, so that the result does not depend on the linear algebra library.

    Args:
        measure: as for `hippo`.
        state_size: an even number.
        rank: as for `low_rank_correction`.
        b_clip: bound of the imaginary part of B, which is the authors' change to HiPPO; `None` for the exact B.
    """
    matrix, b = hippo(measure, state_size)
    rows = low_rank_correction(measure, state_size, rank)
    normal = matrix + rows.T @ rows
    real = torch.tensor(-0.5 if measure == "legs" else 0.0, dtype=torch.float64)  # on the whole diagonal
    # without the diagonal, which is `real`, and without the symmetric part that rounding adds
    skew = (normal - normal.T) / 2
    frequencies, vectors = torch.linalg.eigh(skew * -1j)
    # ascending: the first half is negative, and the other its conjugate
    frequencies, vectors = frequencies[: state_size // 2], vectors[:, : state_size // 2]
    if frequencies[-1].abs() < 1e-9 * frequencies[0].abs():
        # FouT has zero twice: the two real eigenvectors of it make one conjugate pair
        vectors = vectors.clone()
        vectors[:, -1] = 0
        vectors[:2, -1] = torch.tensor([1, 1j], dtype=vectors.dtype) * math.sqrt(0.5)
        frequencies = frequencies.clone()
        frequencies[-1] = 0
    largest = vectors.abs().max(0).values
    first = vectors.abs().gt(1e-9 * largest).int().argmax(0)
    # the phase of an eigenvector is free, but what is clipped below depends on it
    phase = vectors.gather(0, first[None]).sgn()
    basis = (vectors / phase).mH
    b = basis @ b.to(basis)
    if b_clip is not None:
        b = torch.complex(b.real, b.imag.clamp(-b_clip, b_clip))
    return StateSpace(torch.complex(real.expand_as(frequencies), frequencies), b, (basis @ rows.T.to(basis)).T)


def diagonal(kind: str, state_size: int, rank: int = 1) -> StateSpace:
    """
    A diagonal system of S4D with B = 1, and random low-rank rows for models that have them.

    Args:
        kind: `"lin"`, `"inv"`, `"inv2"`, `"quad"`, `"rand"` or `"real"`.
        state_size: an even number.
        rank: number of rows P; complex normal.

    Raises:
        ValueError: for another kind.
    """
    index = torch.arange(state_size // 2, dtype=torch.float64)
    real = torch.full_like(index, 0.5)
    if kind == "lin":
        imaginary = math.pi * index
    elif kind == "inv":
        imaginary = state_size / math.pi * (state_size / (2 * index + 1) - 1)
    elif kind == "inv2":
        imaginary = state_size / math.pi * (state_size / (index + 1) - 1)
    elif kind == "quad":
        imaginary = (2 * index + 1) ** 2 / math.pi
    elif kind == "rand":
        imaginary = torch.randn_like(index).exp()
    elif kind == "real":
        real, imaginary = index + 1, torch.zeros_like(index)
    else:
        raise ValueError(f"Unknown initialization {kind!r}; known are {', '.join(MEASURES + DIAGONALS)}.")
    rows = torch.randn(rank, state_size // 2, dtype=torch.complex128)
    return StateSpace(torch.complex(-real, -imaginary), torch.ones_like(rows[0]), rows)


def initial_state_space(
    kinds: str | list[str] | tuple[str, ...],
    state_size: int,
    copies: int,
    rank: int = 1,
    low_rank: bool = True,
    b_clip: float | None = 2.0,
) -> StateSpace:
    """
    The initial systems of one layer, with leading dimension `copies`: `a` and `b` `[copies, state_size / 2]`.

    Args:
        kinds: measures and diagonal initializations; several share the copies in contiguous, equal parts.
        state_size: an even number.
        copies: number of systems; a multiple of the number of kinds.
        rank: rows of P, which is `[rank, copies, state_size / 2]`.
        low_rank: `False` keeps only the diagonal part of HiPPO matrices (S4D).
        b_clip: as for `diagonalize`.

    Raises:
        ValueError: if the copies cannot be shared equally.
    """
    kinds = [kinds] if isinstance(kinds, str) else list(kinds)
    if copies % len(kinds):
        raise ValueError(f"{copies} state spaces cannot be shared equally by the initializations {kinds}.")
    parts, share = [], copies // len(kinds)
    for kind in kinds:
        if kind in MEASURES:
            # a diagonal model takes every measure, whatever its rank
            parts += [diagonalize(kind, state_size, rank if low_rank else max(rank, 2), b_clip)] * share
        else:
            # each drawn anew, as P is random
            parts += [diagonal(kind, state_size, rank) for _ in range(share)]
    a, b = (torch.stack([part[i] for part in parts]) for i in range(2))
    # those of measures may be more than a diagonal model asks for
    return StateSpace(a, b, torch.stack([part.p[:rank] for part in parts], dim=1))


__all__ = [
    "DIAGONALS",
    "MEASURES",
    "StateSpace",
    "diagonal",
    "diagonalize",
    "hippo",
    "initial_state_space",
    "low_rank_correction",
]
