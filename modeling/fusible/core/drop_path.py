"""Stochastic depth."""

import torch
from torch import nn


class DropPath(nn.Module):
    """Stochastic depth: drops a residual branch per sample, with probability `rate` (arXiv 1603.09382)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        # a tensor, as torch.compile would make another graph for each value of a float
        self.keep = torch.tensor(1 - rate, dtype=torch.float32, device="cpu")

    def forward(self, branch: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return branch
        keep = self.keep.to(branch.device)
        # [batch, 1, ...]: one draw for all of a sample
        kept = torch.rand(len(branch), *[1] * (branch.ndim - 1), dtype=keep.dtype, device=branch.device) < keep
        # divided by the probability to keep, so that the mean is the branch as in eval mode
        return branch * (kept / keep).to(branch.dtype)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


__all__ = ["DropPath"]
