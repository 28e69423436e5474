"""Measures what fusing a model gains: parameters, multiply-adds, bytes, latency, and that nothing else changes."""

import copy
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from .fusion import FusiblePreTrainedModel


@dataclass(frozen=True)
class FormFacts:
    """Size of one form of a model."""

    parameters: int  # without buffers, such as the running statistics of BatchNorm
    macs: int  # multiply-adds for one input
    num_bytes: int  # of all saved tensors


def count_parameters(model: nn.Module) -> int:
    """Number of parameters; buffers, such as the running statistics of BatchNorm, do not count."""
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def count_macs(model: nn.Module, **inputs: torch.Tensor) -> int:
    """Multiply-adds of one forward pass: all matrix products, those of the attention included, and convolutions."""
    # the CPU's fused attention kernels are not counted, so attention runs as plain products
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(**inputs)
    return counter.get_total_flops() // 2


def form_facts(model: FusiblePreTrainedModel, fused: bool) -> FormFacts:
    """Facts of either form of a model, from a copy without weights."""
    config = copy.deepcopy(model.config)
    config.fused = False
    with torch.device("meta"):
        training_form = type(model)(config).eval()
        twin: Any = training_form.fuse() if fused else training_form
    twin.to(dtype=model.dtype)
    inputs = {name: tensor[:1].to("meta") for name, tensor in model.dummy_inputs.items()}
    num_bytes = sum(tensor.nbytes for tensor in twin.state_dict().values())
    return FormFacts(count_parameters(twin), count_macs(twin, **_as(inputs, twin)), num_bytes)


@torch.no_grad()
def max_difference(
    training_form: FusiblePreTrainedModel,
    fused_form: PreTrainedModel,
    inputs: Mapping[str, torch.Tensor] | None = None,
) -> tuple[float, float]:
    """
    Largest absolute difference of the two forms' first outputs in eval mode, and the largest output.

    Args:
        training_form: any mode; it is left in that mode.
        fused_form: of the same dtype.
        inputs: defaults to the model's `dummy_inputs`, which are random.
    """
    was_training = training_form.training
    inputs = training_form.dummy_inputs if inputs is None else inputs
    try:
        expected, actual = (model.eval()(**_as(inputs, model))[0] for model in (training_form, fused_form))
    finally:
        training_form.train(was_training)
    return (actual - expected).abs().max().item(), expected.abs().max().item()


def _as(inputs: Mapping[str, torch.Tensor], model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Inputs on the model's device, floating-point ones in its dtype."""
    moved = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    return {name: tensor.to(model.dtype) if tensor.is_floating_point() else tensor for name, tensor in moved.items()}


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
        name: torch.cat([tensor] * -(-batch_size // len(tensor)))[:batch_size]
        for name, tensor in model.dummy_inputs.items()
    }
    forms = {"training": model.eval(), "fused": model.fuse()}
    functions = []
    for form in forms.values():
        form.to(device=torch.device(device), dtype=dtype or model.dtype)
        function: Any = torch.compile(form) if compiled else form
        functions.append(partial(function, **_as(inputs, form)))
    seconds = median_seconds(functions, repeats)
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
