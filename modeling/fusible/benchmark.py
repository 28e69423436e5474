"""Measures what fusing a model gains: parameters, multiply-adds, file size, latency, and that nothing else changed."""

import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(model: nn.Module) -> int:
    """Number of parameters; buffers, such as the running statistics of BatchNorm, do not count."""
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def count_macs(model: nn.Module, **inputs: torch.Tensor) -> int:
    """Multiply-adds of one forward pass: all matrix products, those of the attention included, and convolutions."""
    with FlopCounterMode(display=False) as counter:
        model(**inputs)
    return counter.get_total_flops() // 2


def folder_bytes(folder: str | Path) -> int:
    """Size of the weight files in a saved model's folder, in bytes."""
    return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))


@torch.no_grad()
def median_seconds(functions: Iterable[Callable[[], object]], repeats: int = 30, warmup: int = 3) -> list[float]:
    """
    Median wall time of each function, in seconds.

    The functions take turns, so that a change in the machine's speed meets all of them.
    """
    functions = list(functions)
    times: list[list[float]] = [[] for _ in functions]
    for repeat in range(warmup + repeats):
        for function, samples in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat >= warmup:
                samples.append(time.perf_counter() - start)
    return [statistics.median(samples) for samples in times]
