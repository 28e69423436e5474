"""Dense models converted block by block, on calibration data, to FFNs with idle channels."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from .calibration import CalibrationData
from .feed_forward import ChannelIdleFeedForward
from .refit import RefitStatistics, idle_without_data_, linearize_norm_, write_back_


@dataclass
class ConvertedBlock:
    """A block of a dense model, and the one that it becomes."""

    dense: nn.Module
    own: nn.Module
    ffn: ChannelIdleFeedForward  # of the own one
    end: nn.Module  # from the FFN's input to the own block's output: the FFN, or with a norm after it
    stream: nn.Module  # where the dense FFN has been added: the dense block's output, or the input of its last norm
    norm: nn.Module  # the dense one that the FFN's input comes from: in front of the FFN, or before the shortcut
    channels_first: bool = False  # the block's output; the FFN sees channels last
    returns_tuple: bool = False  # the block, which begins with the hidden states; seen when the dense one runs

    @property
    def has_dense_norms(self) -> bool:
        """Whether the FFN's norms are the dense one's, and not BatchNorms in their place."""
        return not isinstance(self.ffn.input_norm, nn.modules.batchnorm._BatchNorm)

    @property
    def is_exact(self) -> bool:
        """Whether the FFN is the dense one."""
        return self.has_dense_norms and self.ffn.active_channels == self.ffn.fc1.out_features

    def see_output(self, *seen: Any) -> None:
        """A hook of the dense block."""
        self.returns_tuple = isinstance(seen[-1], tuple)


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Makes a module do something else."""
    object.__setattr__(module, "forward", forward)  # on this object, in front of its class's
    try:
        yield
    finally:
        object.__delattr__(module, "forward")


def _rows(stream: torch.Tensor, data: CalibrationData, batch: int, channels_first: bool) -> torch.Tensor:
    """`[rows, channels]` of a batch's hidden states that the fit reads."""
    tokens = (stream.movedim(1, -1) if channels_first else stream).flatten(1, -2)
    return tokens[data.tokens(batch, tokens.shape[:2])]


class Conversion:
    """
    Converts the blocks of a model in order, each on what the blocks before it, already converted, give it.

    The fit of a block aims at the dense model's hidden states, so it corrects errors of earlier blocks. The dense
    model runs once. The states of the other one are kept, so each of its blocks runs once, too.

    Args:
        dense: a model of transformers, in eval mode.
        model: the one to convert, with dense weights, in eval mode and on the same device.
        blocks: of both.
        data: what they run on.
    """

    def __init__(self, dense: Any, model: Any, blocks: Sequence[ConvertedBlock], data: CalibrationData) -> None:
        self.dense = dense
        self.model = model
        self.blocks = blocks
        self.data = data
        self.states: list[torch.Tensor] = [torch.empty(0)] * len(data.batches)

    def _run(self, model: Any, batch: int) -> None:
        inputs = {}
        for name, value in self.data.batches[batch].items():
            inputs[name] = value.to(model.device, model.dtype if value.is_floating_point() else None)
        model(**inputs)

    @torch.no_grad()
    def run_(self) -> list[float]:
        """
        Converts, in place.

        Returns:
            The squared error of each FFN over the variance of what it is to add.

        Raises:
            ValueError: if the calibration has too few tokens for a fit, or if hidden states are not finite.
        """
        targets = self._dense_streams()
        for block, wanted in zip(self.blocks, targets, strict=True):
            if not wanted.isfinite().all():
                raise ValueError(
                    "The dense model's hidden states are not finite (NaN or infinite) on the calibration."
                )
            if block.is_exact:
                continue
            features = block.ffn.active_channels + block.ffn.fc1.in_features + 1
            if len(wanted) < features:
                raise ValueError(
                    f"The calibration has {len(wanted)} tokens for a fit of {features} weights per channel; give at "
                    f"least {features} tokens, at most {self.data.tokens_per_sample} of which are read per sample."
                )
        found = []
        progress = logging.tqdm(list(zip(self.blocks, targets, strict=True)), desc="Converting blocks")
        for number, (block, wanted) in enumerate(progress):
            found.append(self._convert_(number, block, wanted))
            progress.set_postfix(error=f"{found[-1]:.3f}")
        return found

    def _dense_streams(self) -> list[torch.Tensor]:
        """`[rows, channels]` per block: the dense hidden states behind its FFN."""
        found: list[list[torch.Tensor]] = [[] for _ in self.blocks]
        with ExitStack() as hooks:
            for block, parts in zip(self.blocks, found, strict=True):
                keep = partial(self._keep_stream, block, parts)
                hooks.callback(block.stream.register_forward_hook(keep).remove)
                hooks.callback(block.dense.register_forward_hook(block.see_output).remove)
            for batch in logging.tqdm(range(len(self.data.batches)), desc="Running the dense model"):
                self._run(self.dense, batch)
        return [torch.cat(parts) for parts in found]

    def _keep_stream(self, block: ConvertedBlock, parts: list[torch.Tensor], *seen: Any) -> None:
        """A hook: adds the rows of one batch."""
        _, inputs, output = seen
        value = inputs[0] if block.stream is not block.dense else output
        value = value[0] if isinstance(value, tuple) else value
        parts.append(_rows(value, self.data, len(parts), block.channels_first))

    def _convert_(self, number: int, block: ConvertedBlock, wanted: torch.Tensor) -> float:
        parts = []
        for batch in range(len(self.data.batches)):
            self.states[batch] = self._advance(number, batch)
            parts.append(_rows(self.states[batch], self.data, batch, False))
        error = 0.0
        # what comes after exact blocks only has no error to correct
        if not all(earlier.is_exact for earlier in self.blocks[: number + 1]):
            error = self._refit_(block, parts, wanted)
        for batch, state in enumerate(self.states):
            state = block.end(state)
            self.states[batch] = state.movedim(-1, 1) if block.channels_first else state
        return error

    def _refit_(self, block: ConvertedBlock, parts: list[torch.Tensor], wanted: torch.Tensor) -> float:
        if not block.has_dense_norms:
            linearize_norm_(block.ffn, block.norm, parts)
        statistics, rows = RefitStatistics(block.ffn), torch.cat(parts)
        statistics.add(rows, wanted - rows)
        refit = statistics.refit(block.ffn.active_channels)
        write_back_(block.ffn, refit, statistics)
        return refit.error

    def _advance(self, number: int, batch: int) -> torch.Tensor:
        """What comes to the FFN of a block, from the kept output of the block before it."""
        seen: list[torch.Tensor] = []

        def keep(*inputs: torch.Tensor) -> torch.Tensor:
            # the residual stream comes last
            seen.append(inputs[-1])
            return inputs[-1]

        with ExitStack() as stack:
            for place, block in enumerate(self.blocks):
                if place != number:
                    state = self.states[batch] if place == number - 1 else None
                    stack.enter_context(replaced_forward(block.own, self._passing(block, state)))
            stack.enter_context(replaced_forward(self.blocks[number].end, keep))
            self._run(self.model, batch)
        return seen[0]

    def _passing(self, block: ConvertedBlock, state: torch.Tensor | None) -> Callable[..., Any]:
        """A block's forward that gives a kept state, or what it gets."""

        def forward(hidden_states: torch.Tensor, *_: Any, **__: Any) -> Any:
            output = hidden_states if state is None else state
            return (output, None) if block.returns_tuple else output

        return forward


@torch.no_grad()
def convert_(
    dense: Any, model: Any, blocks: Sequence[ConvertedBlock], data: CalibrationData | None
) -> dict[str, Any] | None:
    """
    Converts the blocks of a model that holds dense weights, in place.

    Args:
        dense: a model of transformers, in eval mode.
        model: the one to convert, in eval mode and on the same device.
        blocks: of both.
        data: what they run on. Without, channels and slopes follow from the weights.

    Returns:
        With data a record for the configuration: `samples` and `block_errors`, the squared error of each FFN over the
        variance of what it is to add.

    Raises:
        ValueError: as `Conversion.run_`.
    """
    if data is not None:
        errors = Conversion(dense, model, blocks, data).run_()
        samples = sum(len(batch[data.main_input]) for batch in data.batches)
        return {"samples": samples, "block_errors": [round(error, 6) for error in errors]}
    for block in blocks:
        gamma, beta = block.norm.get_parameter("weight"), block.norm.get_parameter("bias")
        if not block.has_dense_norms:
            # a BatchNorm of unit statistics
            block.ffn.input_norm.get_parameter("weight").copy_(gamma)
            block.ffn.input_norm.get_parameter("bias").copy_(beta)
        if not block.is_exact:
            idle_without_data_(block.ffn, gamma, beta)
    return None


__all__ = ["Conversion", "ConvertedBlock", "convert_"]
