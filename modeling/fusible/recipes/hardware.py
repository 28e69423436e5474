"""What the numbers of a recipe mean on the machine at hand: batches, precision, workers and schedules."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.utils import logging
from transformers.utils.import_utils import is_torch_bf16_gpu_available

from ..core.machine import usable_cores
from .sections import Settings


logger = logging.get_logger(__name__)
MAX_DEVICE_BATCH = 128  # where a recipe gives a global batch size only


def default_workers() -> int:
    """Processes that load data, for one of this machine's processes that train."""
    # cores are shared by the training processes of a machine; 0 loads in the process itself
    return min(8, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def precision(wanted: str, use_cpu: bool) -> dict[str, bool]:
    """The flags of `TrainingArguments` for the precision wanted, or the nearest that the machine has."""
    found = wanted
    if use_cpu or not torch.accelerator.is_available():
        found = "no"
    elif wanted == "bf16" and not is_torch_bf16_gpu_available():
        # same memory and speed; Trainer then scales the loss against underflow
        found = "fp16"
    if found != wanted:
        logger.warning(
            f"The recipe trains in {wanted}, which this machine does not have; it is trained in "
            f"{'float32' if found == 'no' else found}."
        )
    return {"fp16": found == "fp16", "bf16": found == "bf16"}


def uses_deepspeed(option: Any) -> bool:
    """Whether training is under DeepSpeed, by `TrainingArguments.deepspeed` or by Accelerate's launcher."""
    return option is not None or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true"


def batch_sizes(global_batch_size: int | None, values: Mapping[str, Any], world_size: int) -> dict[str, int]:
    """Batch size of a device and steps of accumulation that make the global batch size."""
    if global_batch_size is None:
        return {}
    if global_batch_size % world_size:
        raise ValueError(
            f"training.global_batch_size is {global_batch_size}, which {world_size} processes cannot share equally."
        )
    share = global_batch_size // world_size
    largest = int(values.get("per_device_train_batch_size") or MAX_DEVICE_BATCH)
    # the largest batch that fits and divides the share, so that every micro-batch is full
    per_device = next(size for size in range(min(share, largest), 0, -1) if share % size == 0)
    accumulation = share // per_device
    # a size that the user gave is not changed silently
    if "per_device_train_batch_size" in values and per_device != min(largest, share):
        raise ValueError(
            f"training.global_batch_size is {global_batch_size}: with {world_size} processes and batches of {largest} "
            f"it cannot be reached; take training.per_device_train_batch_size={per_device}."
        )
    if values.get("gradient_accumulation_steps") not in (None, accumulation):
        raise ValueError(
            f"training.gradient_accumulation_steps is {values['gradient_accumulation_steps']}, but the global batch "
            f"size of {global_batch_size} needs {accumulation}; leave one of the two out."
        )
    return {"per_device_train_batch_size": per_device, "gradient_accumulation_steps": accumulation}


def schedule(settings: Settings, values: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """Warm-up and floor of the learning rate as transformers' schedules take them."""
    result: dict[str, Any] = {}
    rate, kind = values["learning_rate"], str(values.get("lr_scheduler_type", "linear"))
    if settings.warmup_epochs is not None:
        epochs = float(values.get("num_train_epochs", TrainingArguments.num_train_epochs))
        if "warmup_steps" in values:
            raise ValueError("training has warmup_epochs and warmup_steps; leave one of the two out.")
        if not 0 <= settings.warmup_epochs < epochs:
            raise ValueError(f"training.warmup_epochs is {settings.warmup_epochs}; there are {epochs} epochs.")
        result["warmup_steps"] = settings.warmup_epochs / epochs  # below 1: a share of all steps
    if settings.min_learning_rate is None and settings.warmup_learning_rate is None:
        return result
    if kind != "cosine":
        raise ValueError(
            f"training.lr_scheduler_type is {kind!r}; min_learning_rate and warmup_learning_rate go with 'cosine' "
            "only. For others, see lr_scheduler_kwargs."
        )
    result["lr_scheduler_type"] = "cosine_warmup_with_min_lr"
    result["lr_scheduler_kwargs"] = {
        **dict(values.get("lr_scheduler_kwargs") or {}),
        # `rate` has the scale already: the floor needs it as well, to keep its ratio
        "min_lr_rate": scale * (settings.min_learning_rate or 0.0) / rate,
    }
    if settings.warmup_learning_rate is not None:
        result["lr_scheduler_kwargs"]["warmup_lr_rate"] = scale * settings.warmup_learning_rate / rate
    return result


__all__ = [
    "MAX_DEVICE_BATCH",
    "batch_sizes",
    "default_workers",
    "precision",
    "schedule",
    "uses_deepspeed",
]
