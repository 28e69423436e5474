"""Latency of both forms of a model, side by side."""

import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .core.modeling import FusiblePreTrainedModel
from .hub.form_facts import FormFacts, count_macs, count_parameters, form_facts, max_difference, moved


def folder_bytes(folder: str | Path) -> int:
    """Size of the weight files in a saved model's folder, in bytes."""
    return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))


@torch.no_grad()
def median_seconds(
    functions: Iterable[Callable[[], object]],
    repeats: int = 30,
    warmup: int = 3,
    device: torch.device | None = None,
) -> list[float]:
    """
    Median wall time of each function, in seconds.

    The functions take turns, so that a change in the machine's speed meets all of them.

    Args:
        functions: what is timed.
        repeats: of each function.
        warmup: calls of each function before them.
        device: that the functions work on; the current accelerator by default, if there is one.
    """
    device = torch.accelerator.current_accelerator() if device is None else device
    functions = list(functions)
    times: list[list[float]] = [[] for _ in functions]
    for repeat in range(warmup + repeats):
        for function, samples in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            # accelerators work on after the call has returned
            if device is not None and device.type != "cpu":
                torch.accelerator.synchronize(device)
            if repeat >= warmup:
                samples.append(time.perf_counter() - start)
    return [statistics.median(samples) for samples in times]


def compare_forms(
    model: FusiblePreTrainedModel,
    batch_size: int = 1,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    compiled: bool = False,
    repeats: int = 30,
) -> dict[str, Any]:
    """
    Both forms of a model side by side on this machine, on random inputs.

    Args:
        model: the training form; it is cast and moved.
        batch_size: of the inputs.
        dtype: of both forms; the model's by default. They are fused before they are cast.
        device: the accelerator by default, if there is one.
        compiled: with `torch.compile`.
        repeats: of the measurement.

    Returns:
        `training` and `fused`, each with `latency_ms` (median) and `inputs_per_second`; `speedup`, the ratio of the
        latencies; and `device`, `threads`, `dtype`, `compiled` and `batch_size`, under which they were taken.

    Raises:
        ValueError: if the model is fused already.
    """
    if device is None:
        device = torch.accelerator.current_accelerator() or "cpu"
    inputs = {
        # repeated often enough (the quotient rounded up), then cut
        name: torch.cat([tensor] * -(-batch_size // len(tensor)))[:batch_size]
        for name, tensor in model.dummy_inputs.items()
    }
    # fused in the model's own precision, before the casts below
    forms = {"training": model.eval(), "fused": model.fuse(share=True)}
    functions = []
    for form in forms.values():
        form.to(device=torch.device(device), dtype=dtype or model.dtype)
        # compiled in the first call, which is one of the warm-up
        function: Any = torch.compile(form) if compiled else form
        functions.append(partial(function, **moved(inputs, form.device, form.dtype)))
    seconds = median_seconds(functions, repeats, device=model.device)
    results = {
        name: {"latency_ms": 1e3 * value, "inputs_per_second": batch_size / value}
        for name, value in zip(forms, seconds, strict=True)
    }
    return {
        "device": device_name(torch.device(device)),
        "threads": torch.get_num_threads(),
        "dtype": str(dtype or model.dtype).removeprefix("torch."),
        "compiled": compiled,
        "batch_size": batch_size,
        **results,
        "speedup": seconds[0] / seconds[1],
    }


def device_name(device: torch.device) -> str:
    """Of a GPU its product name, else the kind of device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


__all__ = [
    "FormFacts",
    "compare_forms",
    "count_macs",
    "count_parameters",
    "device_name",
    "folder_bytes",
    "form_facts",
    "max_difference",
    "median_seconds",
]
