"""One step on GPUs, of all heads of a state or of some."""

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
        if part.dtype != (torch.int64 if name == "order" else state.dtype):
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
    order: torch.Tensor | None,
    first: int,
) -> None:
    if state.ndim != 4 or increment.ndim not in (3, 4) or c.ndim != 4:
        raise RuntimeError("state and c must have 4 dimensions, and increment 3 or 4")
    (batch, every), (heads, groups, size), channels = state.shape[:2], increment.shape[:3], c.shape[1]
    block = (size, size) if increment.ndim == 4 else (2,)
    if not 0 <= first <= every - heads or 0 in (groups, size, channels):
        raise RuntimeError(f"the state has {every} heads, not {first} and {heads}, or something is empty")
    given = inputs.squeeze(1) if inputs.ndim == 3 else inputs
    parts = {
        "state": (state.flatten(2), (batch, every, groups * size)),
        "outputs": (outputs.flatten(), (batch * channels * every,)),
        "inputs": (given, (batch, every)),
        "increment": (increment, (heads, groups, *block)),
        "tail": (tail, (heads, groups, *block)),
        "b": (b, (heads, groups, size)),
        "c": (c, (heads, channels, groups, size)),
        "skip": (skip, (channels, every)),
        "order": (order, (every,)),
    }
    _check(state, outputs, parts)
    here = slice(first, first + heads)
    place = here if order is None else order[here]
    u, d = given[:, place], None if skip is None else skip[:, place].contiguous()
    is_whole = order is None and heads == every
    y, moved = outputs if is_whole else u.new_empty(batch, channels, heads), state[:, here].contiguous()
    maps = (None if part is None else part.contiguous() for part in (u, increment, tail, b, c))
    raw.step(y, moved, *maps, d, moved)
    if not is_whole:
        outputs.view(batch, channels, every)[:, :, place] = y
        state[:, here] = moved
