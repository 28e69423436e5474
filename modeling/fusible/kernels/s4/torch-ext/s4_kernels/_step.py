"""One step on GPUs."""

from typing import Any

import torch

from ._raw import raw


def _check(state: torch.Tensor, written: torch.Tensor, parts: dict[str, Any]) -> None:
    """Raises `RuntimeError` unless parts, with the shape that each must have, go with a state."""
    for name, (part, shape) in parts.items():
        if part is None:
            continue
        if part.shape != shape or part.device != state.device:
            raise RuntimeError(f"{name} is {list(part.shape)} on {part.device}, not {list(shape)} on {state.device}")
        if part.dtype != state.dtype:
            raise RuntimeError(f"{name} has the wrong dtype, {part.dtype}; the state has {state.dtype}")
    if state.dtype not in (torch.float32, torch.float64):
        raise RuntimeError(f"the state must be float32 or float64, not {state.dtype}")
    if not (state.is_contiguous() and written.is_contiguous()):
        raise RuntimeError("what is written to must be contiguous")


def ssm_step_(
    outputs: torch.Tensor,
    state: torch.Tensor,
    inputs: torch.Tensor,
    increment: torch.Tensor,
    tail: torch.Tensor | None,
    b: torch.Tensor,
    c: torch.Tensor,
    skip: torch.Tensor | None,
    left: torch.Tensor | None,
    right: torch.Tensor | None,
) -> None:
    if state.ndim != 4 or c.ndim != 4 or (left is not None and left.ndim != 4):
        raise RuntimeError("state, c and left must have 4 dimensions")
    if (left is None) != (right is None):
        raise RuntimeError("left and right go together")
    (batch, heads, groups), channels = state.shape[:3], c.shape[1]
    if 0 in (groups, channels):
        raise RuntimeError("groups and channels must be positive")
    given = inputs.squeeze(1) if inputs.ndim == 3 else inputs
    low_rank = None if left is None else (heads, left.shape[1], groups, 2)
    parts = {
        "state": (state, (batch, heads, groups, 2)),
        "outputs": (outputs.flatten(), (batch * channels * heads,)),
        "inputs": (given, (batch, heads)),
        "increment": (increment, (heads, groups, 2)),
        "tail": (tail, (heads, groups, 2)),
        "b": (b, (heads, groups, 2)),
        "c": (c, (heads, channels, groups, 2)),
        "skip": (skip, (channels, heads)),
        "left": (left, low_rank),
        "right": (right, low_rank),
    }
    _check(state, outputs, parts)
    maps = (None if part is None else part.contiguous() for part in (given, increment, tail, b, c, skip, left, right))
    raw.step(outputs, state, *maps, state)
