"""Dense models converted block by block, on calibration data, to FFNs with idle channels."""

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from .calibration import CalibrationData
from .feed_forward import ChannelIdleFeedForward
from .refit import RefitStatistics, linearize_norm_, write_back_


ERROR = "error"  # beside a finished FFN's tensors: that of its fit


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
        return self.is_exact_with(self.ffn.active_channels)

    @property
    def reads_norm(self) -> bool:
        """Whether the FFN reads what the dense norm gives, before the shortcut, and has none in front of it."""
        return isinstance(self.ffn.input_norm, nn.Identity)

    def is_exact_with(self, active_channels: int) -> bool:
        """Whether it would be."""
        return self.has_dense_norms and active_channels == self.ffn.fc1.out_features

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
        self.targets: list[torch.Tensor] = []  # of `run_dense`

    def _run(self, model: Any, batch: int) -> None:
        inputs = {}
        for name, value in self.data.batches[batch].items():
            inputs[name] = value.to(model.device, model.dtype if value.is_floating_point() else None)
        model(**inputs)

    @torch.no_grad()
    def run_(self, finished: MutableMapping[int, dict[str, torch.Tensor]] | None = None) -> list[float]:
        """
        Converts, in place.

        Args:
            finished: tensors of FFNs that are fitted already, by the numbers of their blocks; the others are added.

        Returns:
            The squared error of each FFN over the variance of what it is to add.

        Raises:
            ValueError: if the calibration has too few tokens for a fit, or if hidden states are not finite.
        """
        if not self.targets:
            self.run_dense()
        self.check([block.ffn.active_channels for block in self.blocks])
        found = []
        progress = logging.tqdm(list(zip(self.blocks, self.targets, strict=True)), desc="Converting blocks")
        for number, (block, wanted) in enumerate(progress):
            found.append(self._convert_(number, block, wanted, finished))
            progress.set_postfix(error=f"{found[-1]:.3f}")
        return found

    def check(self, active_channels: Sequence[int]) -> None:
        """Raises `ValueError` if hidden states are not finite, or too few for fits with so many active channels."""
        for block, wanted, active in zip(self.blocks, self.targets, active_channels, strict=True):
            if not wanted.isfinite().all():
                raise ValueError(
                    "The dense model's hidden states are not finite (NaN or infinite) on the calibration."
                )
            features = active + block.ffn.fc1.in_features + 1
            if len(wanted) < features and not block.is_exact_with(active):
                raise ValueError(
                    f"The calibration has {len(wanted)} tokens for a fit of {features} weights per channel; give at "
                    f"least {features} tokens, at most {self.data.tokens_per_sample} of which are read per sample."
                )

    @torch.no_grad()
    def run_dense(self, with_inputs: bool = False) -> list[torch.Tensor]:
        """
        Keeps `targets`: `[rows, channels]` per block, the dense hidden states behind its FFN.

        Args:
            with_inputs: also return what comes to its FFN, `[rows, channels]` per block.
        """
        inputs: list[list[torch.Tensor]] = [[] for _ in self.blocks]
        targets: list[list[torch.Tensor]] = [[] for _ in self.blocks]
        with ExitStack() as hooks:
            for block, before, after in zip(self.blocks, inputs, targets, strict=True):
                keep = partial(self._keep, block, after, block.stream is block.dense)
                hooks.callback(block.stream.register_forward_hook(keep).remove)
                hooks.callback(block.dense.register_forward_hook(block.see_output).remove)
                if with_inputs:
                    keep = partial(self._keep, block, before, block.reads_norm)
                    hooks.callback(block.norm.register_forward_hook(keep).remove)
            for batch in logging.tqdm(range(len(self.data.batches)), desc="Running the dense model"):
                self._run(self.dense, batch)
        self.targets = [torch.cat(parts) for parts in targets]
        return [torch.cat(parts) for parts in inputs if parts]

    def _keep(self, block: ConvertedBlock, parts: list[torch.Tensor], wants_output: bool, *seen: Any) -> None:
        """A hook: adds the rows of one batch, of a module's output or else of its input."""
        _, inputs, output = seen
        value = output if wants_output else inputs[0]
        value = value[0] if isinstance(value, tuple) else value
        parts.append(_rows(value, self.data, len(parts), block.channels_first))

    def _convert_(
        self,
        number: int,
        block: ConvertedBlock,
        wanted: torch.Tensor,
        finished: MutableMapping[int, dict[str, torch.Tensor]] | None,
    ) -> float:
        parts = []
        for batch in range(len(self.data.batches)):
            self.states[batch] = self._advance(number, batch)
            parts.append(_rows(self.states[batch], self.data, batch, False))
        error = 0.0
        # what comes after exact blocks only has no error to correct
        if not all(earlier.is_exact for earlier in self.blocks[: number + 1]):
            found = None if finished is None else finished.get(number)
            if found is None:
                error = self._refit_(block, parts, wanted)
                if finished is not None:
                    # float64: the same number when it is read
                    finished[number] = block.ffn.state_dict() | {ERROR: torch.tensor(error, dtype=torch.float64)}
            else:
                error = found.pop(ERROR).item()
                block.ffn.load_state_dict(found)
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


__all__ = ["Conversion", "ConvertedBlock"]
