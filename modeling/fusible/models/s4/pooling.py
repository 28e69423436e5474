"""
S4 models of several resolutions, with causal pools in between.

SaShiMi: https://huggingface.co/papers/2202.09729; as a U-Net: https://huggingface.co/papers/2111.00396, D.3.1.
"""

import torch
from torch import nn

from .configuration_s4 import S4Config
from .layers import S4Layer


class S4DownPool(nn.Module):
    """
    Joins consecutive positions and projects them to the width of the next stage.

    A state is `[batch, positions, width]`: those of a block that is not complete yet, 0 to `size - 1` of them, without
    the memory of the others.
    """

    def __init__(self, size: int, finer: S4Config, coarser: S4Config) -> None:
        super().__init__()
        self.size = size
        self.proj = nn.Linear(size * finer.hidden_size, coarser.hidden_size)

    def forward(
        self, hidden_states: torch.Tensor, state: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`[batch, length, width]` and a state to `[batch, complete blocks, width of the next stage]` and the next."""
        if state is not None:
            hidden_states = torch.cat([state, hidden_states], dim=1)
        complete = hidden_states.shape[1] // self.size
        blocks = hidden_states[:, : complete * self.size].unflatten(1, (complete, self.size)).flatten(2)
        return self.proj(blocks), hidden_states[:, complete * self.size :].clone()


class S4UpPool(nn.Module):
    """
    Projects each position to several of the finer stage, one block later, as it has seen all of its own block.

    A state is `[batch, positions, width]`: those that are made but not given out yet, 1 to `size` of them. At first
    these are `size` zeros.
    """

    def __init__(self, size: int, coarser: S4Config, finer: S4Config) -> None:
        super().__init__()
        self.size = size
        self.width = finer.hidden_size
        self.proj = nn.Linear(coarser.hidden_size, size * self.width)

    def forward(
        self, hidden_states: torch.Tensor, length: int, state: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`[batch, blocks, width]` and a state to `[batch, length, width of the finer stage]` and the next."""
        made = self.proj(hidden_states).unflatten(2, (self.size, self.width)).flatten(1, 2)
        if state is None:
            state = made.new_zeros(len(made), self.size, self.width)
        # enough for `length`: this state and that of the matching S4DownPool hold `size` positions together
        made = torch.cat([state, made], dim=1)
        return made[:, :length], made[:, length:].clone()


def make_layers(config: S4Config) -> nn.ModuleList:
    """The layers of all stages in their order, with the pools between them."""
    layers = nn.ModuleList()

    def add_layers(stage: S4Config) -> None:
        layers.extend(S4Layer(stage, kind) for kind in stage.layer_kinds)

    stages = [config.stage(number) for number in range(len(config.pool_sizes) + 1)]
    pools = [*zip(config.pool_sizes, stages, stages[1:], strict=False)]
    for size, finer, coarser in pools:
        if config.unet:
            add_layers(finer)
        layers.append(S4DownPool(size, finer, coarser))
    add_layers(stages[-1])
    for size, finer, coarser in reversed(pools):
        layers.append(S4UpPool(size, coarser, finer))
        add_layers(finer)
    return layers


def skip_connections(config: S4Config) -> dict[int, int]:
    """What is added behind a module of `make_layers`: for its number, that of the module whose input it is."""
    depth, count = len(config.pool_sizes), config.num_hidden_layers
    if depth == 0:
        return {}
    if config.unet:
        # the module `down` is the first of the coarsest stage, which has one skip around all of its layers
        down = depth * (count + 1)
        last = 2 * down + count - 1
        return {last - number: number for number in range(down + 1)}
    skips = {depth + count - 1: depth}  # around the coarsest stage
    for number in range(depth):
        up = depth + count + number * (count + 1)
        skips |= {up: depth - 1 - number, up + count: up + 1}  # what was pooled, and around the stage's layers
    return skips


__all__ = ["S4DownPool", "S4UpPool", "make_layers", "skip_connections"]
