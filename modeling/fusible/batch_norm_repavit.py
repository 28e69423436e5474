"""BatchNorms over tokens for training at scale: under activation checkpointing, and over several processes."""

import copy
from typing import cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm


class RecomputeSafe(_BatchNorm):
    """Mixed into a BatchNorm: running statistics change once per step, also under activation checkpointing."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`[tokens, channels]` to the same shape."""
        # the id of the running backward pass; -1 outside of one, where this is not a recomputation
        if not self.training or torch._C._current_graph_task_id() == -1:
            return self.normalise(input)
        thrown_away = copy.copy(self)
        thrown_away._buffers = {name: buffer.clone() for name, buffer in self.named_buffers()}
        return thrown_away.normalise(input)

    def normalise(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input)


class RecomputeSafeBatchNorm1d(RecomputeSafe, nn.BatchNorm1d):
    """Over the tokens of this process."""


class RecomputeSafeSyncBatchNorm(RecomputeSafe, nn.SyncBatchNorm):
    """Over the tokens of all processes, of which each may have another number."""

    def normalise(self, input: torch.Tensor) -> torch.Tensor:
        if input.device.type != "cpu" or not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().normalise(input)
        # torch's own does not run on CPUs
        buffers = self.num_batches_tracked, self.running_mean, self.running_var
        num_batches, running_mean, running_var = (cast(torch.Tensor, buffer) for buffer in buffers)
        tokens = input.to(self.weight.dtype)
        sums = all_reduce(torch.cat([tokens.sum(0), tokens.new_tensor([len(tokens)])]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = tokens - mean
        var = all_reduce(centred.square().sum(0)) / count
        with torch.no_grad():
            num_batches += 1
            running_mean.lerp_(mean, cast(float, self.momentum))
            running_var.lerp_(var * (count / (count - 1)), cast(float, self.momentum))
        return (centred * (var + self.eps).rsqrt() * self.weight + self.bias).to(input.dtype)


__all__ = ["RecomputeSafe", "RecomputeSafeBatchNorm1d", "RecomputeSafeSyncBatchNorm"]
