"""BatchNorms over tokens for training at scale: under activation checkpointing, and over several processes."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.library.custom_op("fusible::copy_in_forward", mutates_args=["tensors"])
def copy_in_forward(tensors: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    """
    Gives tensors new values, in place, unless a backward pass is running.

    A forward pass inside a backward pass is the recomputation of a checkpointed one. Compiled code runs in both, so
    this is asked when the operation runs and not when it is traced.
    """
    if torch._C._current_graph_task_id() == -1:  # the id of the running backward pass; -1 outside of one
        for tensor, value in zip(tensors, values, strict=True):
            tensor.copy_(value)


class SumOfProcesses(torch.autograd.Function):
    """Sum of a tensor over all processes; torch's own with a gradient are deprecated or private."""

    @staticmethod
    def forward(ctx, tensor):  # type: ignore[no-untyped-def]
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        # each process's loss depends on the sum, so its gradient is the sum of theirs
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class RecomputeSafe(_BatchNorm):
    """
    Mixed into a BatchNorm: running statistics change once per step, also under activation checkpointing.

    With a weight that is not trained, as under PEFT, they do not change at all: the BatchNorm runs as in eval mode.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`[tokens, channels]` to the same shape."""
        if not self.training:
            return self.normalize(input)
        if not self.weight.requires_grad:
            # adapters are saved without statistics, so these have to stay those of the base model
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        statistics = dict(self.named_buffers())
        # the forward pass writes to copies, and `copy_in_forward` decides whether they count
        updated = {name: tensor.clone() for name, tensor in statistics.items()}
        self._set_statistics(updated)
        try:
            output = self.normalize(input)
        finally:
            # also after an error, which must not leave the copies in the module
            self._set_statistics(statistics)
        copy_in_forward(list(statistics.values()), list(updated.values()))
        return output

    def _set_statistics(self, statistics: dict[str, torch.Tensor]) -> None:
        for name, tensor in statistics.items():
            setattr(self, name, tensor)

    def normalize(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input)


class RecomputeSafeBatchNorm1d(RecomputeSafe, nn.BatchNorm1d):
    """Over the tokens of this process."""


class RecomputeSafeSyncBatchNorm(RecomputeSafe, nn.SyncBatchNorm):
    """Over the tokens of all processes, of which each may have another number."""

    def normalize(self, input: torch.Tensor) -> torch.Tensor:
        if input.device.type != "cpu" or not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().normalize(input)
        # torch's own does not run on CPUs
        buffers = self.num_batches_tracked, self.running_mean, self.running_var
        num_batches, running_mean, running_var = (cast(torch.Tensor, buffer) for buffer in buffers)
        # [tokens, channels]; under autocast they may come in half precision, whose sums are too coarse
        tokens = input.to(self.weight.dtype)
        # [channels + 1]: sums and number of tokens in one call; `SumOfProcesses` has a gradient
        sums = SumOfProcesses.apply(torch.cat([tokens.sum(0), tokens.new_tensor([len(tokens)])]))
        # the call gives its whole result a gradient
        count = sums[-1].detach()
        mean = sums[:-1] / count
        # in two passes: the difference of mean square and squared mean would lose digits
        centered = tokens - mean
        var = SumOfProcesses.apply(centered.square().sum(0)) / count
        with torch.no_grad():
            num_batches += 1
            running_mean.lerp_(mean, cast(float, self.momentum))
            # as in torch: normed by the biased variance, and the unbiased one is kept
            running_var.lerp_(var * (count / (count - 1)), cast(float, self.momentum))
        return (centered * (var + self.eps).rsqrt() * self.weight + self.bias).to(input.dtype)


__all__ = ["RecomputeSafe", "RecomputeSafeBatchNorm1d", "RecomputeSafeSyncBatchNorm"]
