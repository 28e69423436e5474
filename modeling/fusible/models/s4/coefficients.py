"""The discrete systems of S4's state spaces: pairs of real numbers, plus low rank."""

from typing import Any, NamedTuple, Self

import torch


def real_pairs(tensor: torch.Tensor) -> torch.Tensor:
    """`[..., state]` complex to `[..., state, 2]`."""
    return torch.view_as_real(tensor.resolve_conj())


class Coefficients(NamedTuple):
    """
    The system `x <- x + D x - U V^T x + b u`, `y = c x` of each head.

    It is that of real and imaginary parts of the states in the basis of the parameters. D is blocks of a mode each,
    without the identity: slow modes, whose errors add up over many steps, keep more digits. The bilinear rule of a
    system `A = diag(a) - P P^*` gives exactly this form, by Woodbury's identity.

    Attributes:
        increment: p and q `[heads, groups, 2]` of the blocks `[[p, -q], [q, p]]` of D.
        rounding_residual: what rounding took away from D; `None` for an exact one.
        b: `[heads, groups, 2]`.
        c: `[heads, channels, groups, 2]`.
        left: U `[heads, rank, groups, 2]`; `None` for diagonal systems.
        right: V, of the same shape.
    """

    increment: torch.Tensor
    rounding_residual: torch.Tensor | None
    b: torch.Tensor
    c: torch.Tensor
    left: torch.Tensor | None
    right: torch.Tensor | None

    @classmethod
    def bilinear(cls, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, p: torch.Tensor, dt: torch.Tensor) -> Self:
        """
        The bilinear rule's system of `x' = (diag(a) - P P^*) x + b u`, over the states and their conjugates.

        Args:
            a: `[heads, state]`, like all but dt complex.
            b: `[heads, state]`.
            c: `[heads, channels, state]`, of which outputs are `2 Re(c x)`.
            p: `[heads, rank, state]`.
            dt: step sizes, `[heads, 1]`.
        """
        # S = (1 - dt/2 a)^-1; numbers times S and its transpose are those times it and its conjugate
        scale = 2 / (2 - a * dt)
        columns = p, scale[:, None] * p, scale.conj()[:, None] * p
        width, scaled, right = (real_pairs(part).flatten(2) for part in columns)
        # P P^* x over x and its conjugate is P 2 Re(P^* x), which is the 2 in 4 dt/2
        eye = torch.eye(p.shape[1], dtype=dt.dtype, device=dt.device)
        inner = eye + dt[..., None] * (width @ scaled.mT)
        left = torch.linalg.solve(inner, 2 * dt[..., None] * scaled.mT, left=False).mT
        column = real_pairs(dt * b)
        through = (right @ column.flatten(1)[..., None] * left).sum(1)
        column = real_pairs(scale * dt * b) - through.view_as(column) / 2
        increment = real_pairs(a * dt * scale)
        shape = (*p.shape, 2)
        return cls(increment, None, column, 2 * real_pairs(c.conj()), left.view(shape), right.view(shape))

    def cast(self, dtype: torch.dtype) -> Self:
        """In another dtype, each part by itself."""
        residual = None if self.rounding_residual is None else self.rounding_residual.to(dtype)
        return type(self)(self.increment.to(dtype), residual, *self._others(dtype))

    def rounded(self, dtype: torch.dtype) -> Self:
        """An exact system as it is stored in a dtype."""
        increment = self.increment.to(dtype)
        residual = (self.increment - increment).to(dtype)
        return type(self)(increment, residual, *self._others(dtype))

    def in_precision(self, dtype: torch.dtype) -> Self:
        """In a dtype that holds D without a residual."""
        residual = 0 if self.rounding_residual is None else self.rounding_residual.to(dtype)
        return type(self)(self.increment.to(dtype) + residual, None, *self._others(dtype))

    def _others(self, dtype: torch.dtype) -> list[Any]:
        """b, c, U and V."""
        return [None if part is None else part.to(dtype) for part in (self.b, self.c, self.left, self.right)]

    def transition(self) -> torch.Tensor:
        """The transition of an exact system: blocks `[heads, groups, 2, 2]`, or with U and V `[heads, size, size]`."""
        p, q = self.increment.unbind(-1)
        blocks = torch.stack([p, -q, q, p], dim=-1).unflatten(-1, (2, 2))
        if self.left is None or self.right is None:
            return blocks + torch.eye(2, dtype=blocks.dtype, device=blocks.device)
        groups = torch.eye(blocks.shape[1], dtype=blocks.dtype, device=blocks.device)
        # [heads, groups, 2, groups, 2], blocks on the diagonal
        whole = (blocks[..., None, :] * groups[:, None, :, None]).flatten(3).flatten(1, 2)
        eye = torch.eye(whole.shape[-1], dtype=blocks.dtype, device=blocks.device)
        return eye + whole - self.left.flatten(2).mT @ self.right.flatten(2)

    def matrices(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Transition, b and c of an exact system, as `ssm_scan` takes them: pairs, or a dense matrix of each head."""
        if self.left is None:
            return self.transition(), self.b, self.c
        return self.transition()[:, None], self.b.flatten(1)[:, None], self.c.flatten(2)[:, :, None]


__all__ = ["Coefficients", "real_pairs"]
