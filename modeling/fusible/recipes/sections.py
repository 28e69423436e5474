"""The sections of recipes, whose types are checked."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NoReturn, cast

from transformers import HfArgumentParser

from ..core.options import check_keys


@dataclass
class Settings:
    """What `training` has beside the fields of `TrainingArguments`."""

    optimizer: str = field(default="adamw_torch", metadata={"help": "one of TrainingArguments.optim, or lamb"})
    global_batch_size: int | None = field(default=None, metadata={"help": "of a step, over all devices"})
    learning_rate_batch_size: int | None = field(
        default=None,
        metadata={"help": "global batch size that the learning rates are for; for others they are scaled"},
    )
    learning_rate_scaling: Literal["linear", "sqrt"] = "linear"
    min_learning_rate: float | None = field(default=None, metadata={"help": "at the end of a cosine schedule"})
    warmup_epochs: float | None = None
    warmup_learning_rate: float | None = field(default=None, metadata={"help": "at the first step"})
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    ema_decay: float | None = field(default=None, metadata={"help": "evaluate and save an average of the weights"})
    backbone_learning_rate_factor: float = 1.0
    layer_decay: float | None = field(
        default=None, metadata={"help": "factor of the learning rate from block to block"}
    )
    ssm_learning_rate: float | None = None
    ssm_parameters: list[str] | None = None

    def __post_init__(self) -> None:
        for name in ("global_batch_size", "learning_rate_batch_size"):
            if (size := getattr(self, name)) is not None and size < 1:
                raise ValueError(f"{name} is {size}; it must be at least 1.")
        # optimizers look at their default only, and climb where the rate of a group is negative
        for name in (
            "min_learning_rate",
            "warmup_learning_rate",
            "backbone_learning_rate_factor",
            "layer_decay",
            "ssm_learning_rate",
        ):
            if (value := getattr(self, name)) is not None and value < 0:
                raise ValueError(f"{name} is {value}; it must not be negative.")


@dataclass
class InputAugmentation:
    """Random changes of single training inputs: options of the data set's transform."""

    auto_augment: str | None = None
    interpolation: Literal["bicubic", "bilinear", "nearest", "lanczos", "random"] = "bicubic"
    color_jitter: float = 0.0
    resized_crop_area: list[float] = field(default_factory=lambda: [0.08, 1.0])
    resized_crop_ratio: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3])
    horizontal_flip: float = 0.5
    random_erasing: float = 0.0
    random_erasing_mode: Literal["const", "rand", "pixel"] = "const"

    def changed(self) -> dict[str, Any]:
        """Those of these options that differ from their defaults, which are the transforms' own."""
        # videos and segmentation refuse some options: those at their default must not reach them
        defaults = InputAugmentation()
        options = {entry.name: getattr(self, entry.name) for entry in fields(InputAugmentation)}
        return {name: value for name, value in options.items() if value != getattr(defaults, name)}


@dataclass
class Augmentation(InputAugmentation):
    """Random changes of training inputs, and of their batches."""

    repeated_augmentation: int = 1
    mixup: float = 0.0
    cutmix: float = 0.0
    mixup_switch: float = 0.5
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if self.repeated_augmentation < 1:
            raise ValueError(f"repeated_augmentation is {self.repeated_augmentation}; it must be at least 1.")
        for name in ("resized_crop_area", "resized_crop_ratio"):
            if len(getattr(self, name)) != 2:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be two numbers, least and greatest.")


@dataclass
class Distillation:
    """A teacher to learn from, see `training.distillation`."""

    teacher: str | None = field(default=None, metadata={"help": "folder or Hub repository; base_model by default"})
    alpha: float = field(default=0.5, metadata={"help": "share of the teacher's outputs; with 1 labels are not used"})
    temperature: float = 1.0
    kind: Literal["soft", "hard"] = "soft"
    hidden_states: float = field(default=0.0, metadata={"help": "weight of the distance of hidden states"})
    as_inference: bool = field(default=False, metadata={"help": "without dropout, BatchNorms keep their statistics"})


class _Parser(HfArgumentParser):
    """Raises instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parse(types: Sequence[type], values: Mapping[str, Any], where: str) -> Any:
    """
    Values as dataclasses, with their types checked and converted: YAML reads `1e-3` as a string.

    Raises:
        ValueError: for an unknown key, a value of another type, or a number that is NaN or infinite.
    """
    check_keys(values, [entry.name for type_ in types for entry in fields(type_) if entry.init], where)
    arguments: list[str] = []
    for name, value in values.items():
        # a command line cannot say None; the option keeps its default
        if value is None:
            continue
        entries = value if isinstance(value, list | tuple) else [value]
        # as HfArgumentParser reads them: true and not True, sections as JSON
        texts = [json.dumps(entry) if isinstance(entry, dict | bool) else str(entry) for entry in entries]
        if len(texts) == 1 and not isinstance(value, list | tuple):
            arguments.append(f"--{name}={texts[0]}")  # in one piece, as a value can begin with a dash
        else:
            arguments += [f"--{name}", *texts]
    try:
        # without abbreviations and files of arguments, which would let misspelled keys pass
        parser = _Parser(cast(Any, types), allow_abbrev=False)
        parsed = parser.parse_args_into_dataclasses(arguments, look_for_args_file=False)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    for name in values:
        value = next(getattr(part, name) for part in parsed if hasattr(part, name))
        numbers = value if isinstance(value, list) else [value]
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise ValueError(f"{where}: {name} is {value}; it must be finite.")
    return parsed


__all__ = ["Augmentation", "Distillation", "InputAugmentation", "Settings", "parse"]
