"""Options of models whose FFNs let most hidden channels skip the activation."""

import math
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict

from ...core.backbone_configuration import BackboneFusibleConfig


@strict
class IdleChannelsConfig(BackboneFusibleConfig):
    r"""
    Base class of the configurations of models with channel-idle FFNs.

    Args:
        idle_ratio (`float`, *optional*):
            Share of each FFN's hidden channels that skip the activation, in [0, 1]. Defaults to 0.75, unless
            `active_channels` is given.
        idle_schedule (`"static"` or `"linear"`, *optional*, defaults to `"static"`):
            The same ratio in all blocks, or a ratio that grows with depth around `idle_ratio` and is 0 in the last
            block (the authors' heuristic; needs `idle_ratio` >= 0.5).
        active_channels (`list[int]`, *optional*):
            Number of active channels of each block, instead of `idle_ratio`; the first ones of the hidden width.
        conversion (`dict`, *optional*):
            Where the weights were made from, if by a conversion: `block_errors`, and what the converter adds.
    """

    non_structural_fields: ClassVar[frozenset[str]] = frozenset({"conversion"})

    idle_ratio: float | int | None = None
    idle_schedule: Literal["static", "linear"] = "static"
    active_channels: list[int] | tuple[int, ...] | None = None
    conversion: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.idle_ratio is None and self.active_channels is None:
            self.idle_ratio = 0.75
        if self.idle_ratio is not None:
            self.idle_ratio = float(self.idle_ratio)
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Raises `ValueError` for ratios outside their range, and for options that do not go together."""
        super().validate_architecture()
        if self.idle_ratio is not None and self.active_channels is not None:
            raise ValueError(
                "Give idle_ratio or active_channels, not both: set idle_ratio=None or active_channels=None."
            )
        if self.idle_ratio is not None and not 0 <= self.idle_ratio <= 1:
            raise ValueError(f"idle_ratio is {self.idle_ratio}; it is a share and must be in [0, 1].")
        if self.idle_schedule == "linear" and (self.idle_ratio is None or self.idle_ratio < 0.5):
            raise ValueError(f"idle_schedule='linear' needs an idle_ratio in [0.5, 1], not {self.idle_ratio}.")

    def active_channels_of(self, hidden_channels: list[int]) -> list[int]:
        """
        Number of active channels of each block, given the hidden width of its FFN.

        Raises:
            ValueError: if `active_channels` has another length or exceeds a width, or if a changed `idle_ratio`
                contradicts it.
        """
        self.validate_architecture()
        depth = len(hidden_channels)
        if self.active_channels is not None:
            if len(self.active_channels) != depth:
                raise ValueError(f"active_channels has {len(self.active_channels)} entries for {depth} blocks.")
            if any(not 0 <= a <= h for a, h in zip(self.active_channels, hidden_channels, strict=True)):
                raise ValueError(f"active_channels {self.active_channels} must be in [0, hidden]: {hidden_channels}.")
            return list(self.active_channels)
        r = float(self.idle_ratio or 0)
        ratios = [r] * depth
        if self.idle_schedule == "linear":
            # from about 2r - 1 to 1 over all blocks but the last, whose channels are all active
            ratios = [(2 * r - 1) + (2 - 2 * r) * (i + 1) / (depth - 1) for i in range(depth - 1)] + [0.0]
        # plain float arithmetic, then ceil: the authors' checkpoints depend on its rounding
        return [math.ceil(h * (1 - ratio)) for h, ratio in zip(hidden_channels, ratios, strict=True)]


__all__ = ["IdleChannelsConfig"]
