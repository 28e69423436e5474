"""ZeroI2V's spatial-temporal dual-headed attention (STDHA): some heads take keys and values from another frame."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ...core.subclassing import mix_in_


Range = tuple[int, int, int]  # first channel, channel after the last, offset of the frame that they come from


@dataclass
class FrameLayout:
    """How a batch holds frames: index `(clip * num_frames + frame) * windows + window`, mostly with one window."""

    num_frames: int
    num_images: int | None = None  # clips * num_frames, where there are windows


def channel_offsets(offsets: Sequence[int | Sequence[int]], head_channels: int) -> list[Range]:
    """
    The ranges of channels that come from another frame.

    Args:
        offsets: of the heads from the first on; several of them divide a head's channels evenly.
        head_channels: channels of a head.

    Raises:
        ValueError: if a head's channels cannot be divided.
    """
    ranges: list[Range] = []
    for head, entry in enumerate(offsets):
        parts = [entry] if isinstance(entry, int) else list(entry)
        width, rest = divmod(head_channels, len(parts))
        if rest:
            raise ValueError(f"A head of {head_channels} channels cannot be divided between {len(parts)} offsets.")
        for part, offset in enumerate(parts):
            start = head * head_channels + part * width
            # neighboring channels with one offset are one range: one copy instead of several
            if ranges and ranges[-1][1:] == (start, offset):
                ranges[-1] = (ranges[-1][0], start + width, offset)
            elif offset != 0:
                ranges.append((start, start + width, offset))
    return ranges


def shift_frames_(projected: torch.Tensor, ranges: Sequence[Range], layout: FrameLayout) -> torch.Tensor:
    """
    Replaces ranges of channels, in place, by those of the frame at an offset; frames without such a one keep theirs.

    Args:
        projected: keys or values `[clips * frames * windows, tokens, channels]`.
        ranges: as from `channel_offsets`.
        layout: of the first axis.
    """
    length = layout.num_frames
    windows = 1 if layout.num_images is None else len(projected) // layout.num_images
    # a view [clips, frames, windows, tokens, channels]: frames of other clips are out of reach
    clips = projected.unflatten(0, (-1, length, windows))
    # ranges do not overlap, so none reads what another one has written
    for start, stop, offset in ranges:
        # no wrapping and no clamping: frames at the border keep their own, as in the authors' code
        if abs(offset) < length:
            source = clips[:, max(offset, 0) : length + min(offset, 0), ..., start:stop]
            # a clone, as source and destination overlap in memory
            clips[:, max(-offset, 0) : length - max(offset, 0), ..., start:stop] = source.clone()
    return projected


class ShiftedLinear(nn.Module):
    """
    Projection to keys or values, bias included, after which some heads' channels come from other frames.

    With `K = X W + b` per frame, head h of frame t gets `K[t + offset_h]`, or `K[t]` if that is outside the clip, for
    all tokens, the class token included. Only these channels are moved, there are no parameters but the projection's,
    and any attention can follow. It is no `nn.Linear`, so that tools which replace or extend linears (quantization,
    LoRA) leave it alone or refuse it: they would lose the shift without a word.

    Args:
        linear: the projection; its parameters become this module's.
        ranges: as from `channel_offsets`.
        layout: shared by all projections of a block.
    """

    def __init__(self, linear: nn.Linear, ranges: list[Range], layout: FrameLayout) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.weight = linear.weight
        self.bias = linear.bias
        self.ranges = ranges
        self.layout = layout
        # weights that were loaded are not initialized again
        self._is_hf_initialized = getattr(linear, "_is_hf_initialized", False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[clips * frames * windows, tokens, in]` to `[clips * frames * windows, tokens, out]`."""
        # in place is safe under autograd: a linear's backward pass does not need its output
        return shift_frames_(F.linear(hidden_states, self.weight, self.bias), self.ranges, self.layout)

    def as_linear(self) -> nn.Linear:
        """The projection alone, with the same parameters."""
        # no memory and no random numbers for weights that are replaced
        linear = nn.Linear(1, 1, device="meta")
        linear.weight = self.weight
        linear.bias = self.bias
        return linear

    def like(self, linear: nn.Linear) -> "ShiftedLinear":
        """The same shift after another projection."""
        return ShiftedLinear(linear, self.ranges, self.layout)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, ranges={self.ranges}"


class WindowedBlock(GradientCheckpointingLayer):
    """Mixed into a backbone's block class that attends in windows: tells the projections how many images there are."""

    layout: FrameLayout

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        # in the block, so that activation checkpointing, which runs it again, sets the same number
        self.layout.num_images = len(hidden_states)
        return super().forward(hidden_states, *args, **kwargs)


def shift_heads_(
    block: nn.Module, attention: nn.Module, offsets: Sequence[int | Sequence[int]], num_frames: int, windowed: bool
) -> None:
    """
    Makes heads of a block's attention, in place, take keys and values from other frames.

    Args:
        block: a Transformer block.
        attention: the module in it that has `k_proj`, `v_proj` and `head_dim`.
        offsets: of the heads from the first on.
        num_frames: frames of a clip.
        windowed: whether the attention's batch axis is one of windows.
    """
    ranges, layout = channel_offsets(offsets, cast(int, attention.head_dim)), FrameLayout(num_frames)
    # no temporal head, as with one frame: the attention stays the stock one
    if not ranges:
        return
    # queries stay with their frame
    for name in ("k_proj", "v_proj"):
        setattr(attention, name, ShiftedLinear(cast(nn.Linear, attention.get_submodule(name)), ranges, layout))
    if windowed:
        mix_in_(block, WindowedBlock)
        cast(WindowedBlock, block).layout = layout


__all__ = ["FrameLayout", "ShiftedLinear", "channel_offsets", "shift_frames_", "shift_heads_"]
