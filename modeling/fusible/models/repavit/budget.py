"""Active channels distributed over the blocks of a model, which is to become faster by a wanted factor."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from transformers.utils import logging

from ...hub.form_facts import count_macs, eval_mode, moved
from .conversion import Conversion, ConvertedBlock
from .feed_forward import ChannelIdleFeedForward
from .refit import Refit, RefitStatistics, linearize_norm_


GRID = 13  # numbers of active channels between which a block's choice is made
EVERY = 4  # of these it is measured how far the model's output moves; between them the change is in proportion
SAMPLES = 16  # of the calibration, on which that is measured
STEPS = 10_000  # of multiply-adds, in which a budget is handed out


def take_speedup(options: dict[str, Any], speedup: Any, calibration: Any) -> float | None:
    """
    The wanted speedup, if the idle ratio is `"auto"`; the options then say that no channel is idle.

    Args:
        options: of `from_dense`; changed.
        speedup: what was given.
        calibration: what was given.

    Raises:
        ValueError: if these do not go together, or are not what they must be.
    """
    ratio = options.get("idle_ratio")
    if ratio != "auto":
        if isinstance(ratio, str):
            raise ValueError(f"idle_ratio is {ratio!r}; give a number in [0, 1], or 'auto' with a speedup.")
        if speedup is not None:
            raise ValueError(f"speedup={speedup!r} goes with idle_ratio='auto' only; idle_ratio is {ratio}.")
        return None
    if speedup is None or calibration is None:
        missing = "speedup, such as 1.5" if speedup is None else "calibration data, on which errors are measured"
        raise ValueError(f"idle_ratio='auto' needs {missing}.")
    if isinstance(speedup, bool) or not isinstance(speedup, int | float) or not 1 < speedup < math.inf:
        raise ValueError(f"speedup is {speedup!r}; give a finite number above 1.")
    for name, usual in (("active_channels", None), ("idle_schedule", "static")):
        if options.get(name, usual) != usual:
            raise ValueError(f"idle_ratio='auto' distributes active channels by itself; leave {name} out.")
    options["idle_ratio"] = 0.0
    return float(speedup)


def useful_counts(hidden: int, width: int) -> list[int]:
    """Numbers of active channels to choose from: all, and with at least as many idle ones as inputs."""
    if hidden < width:
        return [hidden]
    last = hidden - width
    return [hidden, *sorted({round(last * step / (GRID - 1)) for step in range(GRID)} - {hidden}, reverse=True)]


@torch.no_grad()
def refits(
    conversion: Conversion, counts: Sequence[Sequence[int]]
) -> Iterator[tuple[ChannelIdleFeedForward, list[Refit | None]]]:
    """
    Each FFN with several numbers of active channels, fitted to what the dense model gives it; nothing is converted.

    Args:
        conversion: of a model whose channels are all active.
        counts: numbers of active channels, for each block.

    Yields:
        For each block its FFN, with the norm that it is to have, and the fits. `None` is for the dense FFN itself.

    Raises:
        ValueError: if the calibration has too few tokens for a fit, or if hidden states are not finite.
    """
    inputs = conversion.run_dense(with_inputs=True)
    conversion.check([sorted(options)[-2:][0] for options in counts])  # with all channels active there may be no fit
    for number, block in enumerate(logging.tqdm(conversion.blocks, desc="Measuring blocks")):
        rows, wanted, ffn = inputs.pop(0), conversion.targets[number], copy.deepcopy(block.ffn)
        if not block.has_dense_norms:
            linearize_norm_(ffn, block.norm, [rows])
        statistics = RefitStatistics(ffn)
        statistics.add(rows, wanted - rows)
        yield ffn, [None if block.is_exact_with(active) else statistics.refit(active) for active in counts[number]]


class OutputChange:
    """How far a dense model's last hidden states move on some samples when one of its FFNs is replaced."""

    def __init__(self, conversion: Conversion) -> None:
        self.dense = conversion.dense
        sample = {name: value[:SAMPLES] for name, value in conversion.data.batches[0].items()}
        self.inputs = moved(sample, self.dense.device, self.dense.dtype)
        self.before = self._run()

    def _run(self) -> torch.Tensor:
        hidden_states = self.dense(**self.inputs)[0]
        masks = [self.inputs[name] for name in ("attention_mask", "pixel_attention_mask") if name in self.inputs]
        # padding does not count
        return hidden_states[masks[0].bool()] if masks and hidden_states.ndim == 3 else hidden_states

    @torch.no_grad()
    def by(self, block: ConvertedBlock, ffn: ChannelIdleFeedForward, refit: Refit) -> float:
        """The squared change when a block has a `Refit` of this FFN."""
        inputs: list[torch.Tensor] = []

        def keep(_: nn.Module, given: tuple[torch.Tensor], output: torch.Tensor) -> None:
            inputs.append(output if block.reads_norm else given[0])

        def replaced() -> torch.Tensor:
            rows = inputs[-1].movedim(1, -1) if block.channels_first else inputs[-1]
            stream = rows + refit.branch(ffn, rows)
            return stream.movedim(-1, 1) if block.channels_first else stream

        def replace_output(_: nn.Module, given: Any, output: Any) -> Any:
            return (replaced(), *output[1:]) if isinstance(output, tuple) else replaced()

        hooks = [block.norm.register_forward_hook(keep)]
        if block.stream is block.dense:
            hooks.append(block.stream.register_forward_hook(replace_output))
        else:
            hooks.append(block.stream.register_forward_pre_hook(lambda _, given: (replaced(),)))
        try:
            return float((self._run() - self.before).double().square().sum())
        finally:
            for hook in hooks:
                hook.remove()


class MultiplyAdds:
    """
    What a whole dense model costs for one input, and the fused one with so many active channels in each block.

    Args:
        dense: the whole dense model.
        model: the training form that it becomes.
        ffns: of the training form, first to last.
        inputs: one input.
    """

    def __init__(
        self, dense: Any, model: Any, ffns: Sequence[ChannelIdleFeedForward], inputs: Mapping[str, torch.Tensor]
    ) -> None:
        self.ffns = ffns
        self.tokens: dict[nn.Module, int] = {}  # that each FFN sees
        hooks = [ffn.register_forward_hook(self._count_tokens) for ffn in ffns]
        try:
            with eval_mode(dense, model):
                self.dense, whole = (count_macs(m, **moved(inputs, m.device, m.dtype)) for m in (dense, model))
        finally:
            for hook in hooks:
                hook.remove()
        # attention, embeddings, head
        self.rest = whole - sum(self.tokens[ffn] * 2 * ffn.fc1.weight.numel() for ffn in ffns)

    def _count_tokens(self, ffn: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        self.tokens[ffn] = output[..., 0].numel()

    def of_channel(self, ffn: ChannelIdleFeedForward) -> int:
        """What one active channel more costs, where idle ones are merged."""
        return self.tokens[ffn] * 2 * ffn.fc1.in_features

    def of_ffn(self, ffn: ChannelIdleFeedForward, active: int) -> int:
        """Of a fused FFN; `ChannelIdleFeedForward.fuse` merges idle channels where that is less."""
        merged = self.tokens[ffn] * ffn.fc1.in_features**2 + active * self.of_channel(ffn)
        return min(merged, ffn.fc1.out_features * self.of_channel(ffn))

    def speedup(self, active: Sequence[int]) -> float:
        """Multiply-adds of the dense model over those of the fused one."""
        return self.dense / (self.rest + sum(map(self.of_ffn, self.ffns, active)))


def distribute_(conversion: Conversion, cost: MultiplyAdds, speedup: float) -> None:
    """
    Sets the active channels of a model's FFNs, before it is converted, for the least error at a wanted speedup.

    The error is the sum of the changes of the dense model's last hidden states when one FFN is replaced at a time.

    Args:
        conversion: of a model whose channels are all active.
        cost: of this model.
        speedup: to be reached. It is exceeded by less than what a channel costs, if a block with idle channels can
            take another active one and keep as many idle ones as inputs.

    Raises:
        ValueError: if so much cannot be reached, or as `refits`.
    """
    ffns = cost.ffns
    counts = [useful_counts(*ffn.fc1.weight.shape) for ffn in ffns]
    costs = [[cost.of_ffn(ffn, a) for a in options] for ffn, options in zip(ffns, counts, strict=True)]
    limit = math.floor(cost.dense / speedup) - cost.rest
    if limit < sum(map(min, costs)):
        # rounded down, so that what is said can be reached
        most = math.floor(1000 * cost.speedup([options[-1] for options in counts])) / 1000
        raise ValueError(
            f"speedup={speedup:g} is out of reach. At most {most:g} is possible, with all channels of the FFNs idle: "
            "what is beside the FFNs stays as it is."
        )
    change, losses = OutputChange(conversion), []
    for block, (ffn, fits) in zip(conversion.blocks, refits(conversion, counts), strict=True):
        errors = [0.0 if fit is None else fit.error for fit in fits]
        # an error of one block moves the output more than one of another: by so much, at some of the fits
        places = [n for n in sorted({*range(1, len(fits), EVERY), len(fits) - 1}) if fits[n] is not None]
        changes = [change.by(block, ffn, cast(Refit, fits[n])) / max(errors[n], 1e-12) for n in places]
        scale = np.interp(range(len(fits)), places, changes) if places else [0.0]
        losses.append([float(factor) * error for factor, error in zip(scale, errors, strict=True)])
    chosen = least_loss(costs, losses, limit)
    active = [options[choice] for options, choice in zip(counts, chosen, strict=True)]
    spare = limit - sum(map(cost.of_ffn, ffns, active))
    # what the steps leave over goes to the blocks that lose most, up to as many idle channels as inputs
    for number in sorted(range(len(active)), key=lambda n: losses[n][chosen[n]], reverse=True):
        ffn = ffns[number]
        more = min(ffn.fc1.out_features - ffn.fc1.in_features - active[number], spare // cost.of_channel(ffn))
        active[number] += max(0, more)
        spare -= max(0, more) * cost.of_channel(ffn)
        ffn.active_channels = active[number]


def least_loss(costs: Sequence[Sequence[int]], losses: Sequence[Sequence[float]], limit: int) -> list[int]:
    """
    Which option of each block to take, for the least sum of losses at costs of at most `limit`.

    Dynamic programming over the blocks, with costs beyond the least ones rounded up to one of `STEPS`.
    """
    least = [min(options) for options in costs]
    spare = min(limit - sum(least), sum(map(max, costs)) - sum(least))
    unit = max(1, -(-spare // STEPS))
    steps = [[-(-(cost - low) // unit) for cost in options] for options, low in zip(costs, least, strict=True)]
    size = spare // unit + 1
    best, choices = torch.zeros(size, dtype=torch.float64, device="cpu"), []
    for block_steps, block_losses in zip(steps, losses, strict=True):
        found = best.new_full((len(block_steps), size), math.inf)
        for row, step, loss in zip(found, block_steps, block_losses, strict=True):
            if step < size:
                row[step:] = best[: size - step] + loss
        best, choice = found.min(0)
        choices.append(choice)
    place, chosen = size - 1, []
    for block_steps, choice in zip(reversed(steps), reversed(choices), strict=True):
        chosen.append(int(choice[place]))
        place -= block_steps[chosen[-1]]
    return chosen[::-1]


__all__ = [
    "MultiplyAdds",
    "OutputChange",
    "distribute_",
    "least_loss",
    "refits",
    "take_speedup",
    "useful_counts",
]
