"""The sections of recipes, and how they are read: strictly, with hints and overrides."""

import copy
import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NoReturn, cast

import yaml
from transformers import HfArgumentParser


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
    ema_decay: float | None = field(default=None, metadata={"help": "also keep an average of the weights"})
    backbone_learning_rate_factor: float = 1.0
    layer_decay: float | None = field(
        default=None, metadata={"help": "factor of the learning rate from block to block"}
    )
    ssm_learning_rate: float | None = None
    ssm_parameters: list[str] | None = None


@dataclass
class Augmentation:
    """What happens to training inputs; see `augmentation.py` and `video.py`."""

    auto_augment: str | None = None
    interpolation: Literal["bicubic", "bilinear", "nearest", "lanczos", "random"] = "bicubic"
    color_jitter: float = 0.0
    resized_crop_area: list[float] = field(default_factory=lambda: [0.08, 1.0])
    resized_crop_ratio: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3])
    horizontal_flip: float = 0.5
    random_erasing: float = 0.0
    random_erasing_mode: Literal["const", "rand", "pixel"] = "const"
    repeated_augmentation: int = 1
    mixup: float = 0.0
    cutmix: float = 0.0
    mixup_switch: float = 0.5
    label_smoothing: float = 0.0


@dataclass
class Distillation:
    """A teacher to learn from; see `distillation.py`."""

    teacher: str | None = field(default=None, metadata={"help": "folder or Hub repository"})
    alpha: float = 0.5
    temperature: float = 1.0
    kind: Literal["soft", "hard"] = "soft"


class Loader(yaml.SafeLoader):
    """YAML in which `no` and `off` are words, as in `save_strategy: no`; only true and false are booleans."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("true|True|TRUE|false|False|FALSE"), list("tTfF"))


class _Parser(HfArgumentParser):
    """Raises instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def nearest(key: str, known: Iterable[str]) -> str:
    """A hint that names what was meant, or else all there is."""
    known = sorted(known)
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    close = close or [name for name in known if name.rpartition(".")[2] == key][:1]
    return f"Did you mean {close[0]}?" if close else f"Known are {', '.join(known)}."


def check_keys(values: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Raises `ValueError` for the first key that is not known."""
    known = list(known)
    for key in values:
        if key not in known:
            raise ValueError(f"{where} has no {key!r}. {nearest(key, known)}")


def parse(types: Sequence[type], values: Mapping[str, Any], where: str) -> Any:
    """
    Values as dataclasses, with their types checked and converted: YAML reads `1e-3` as a string.

    Raises:
        ValueError: for an unknown key or a value of another type.
    """
    check_keys(values, [entry.name for type_ in types for entry in fields(type_) if entry.init], where)
    arguments: list[str] = []
    for name, value in values.items():
        if value is None:
            continue
        entries = value if isinstance(value, list | tuple) else [value]
        texts = [json.dumps(entry) if isinstance(entry, dict | bool) else str(entry) for entry in entries]
        if len(texts) == 1 and not isinstance(value, list | tuple):
            arguments.append(f"--{name}={texts[0]}")  # in one piece, as a value can begin with a dash
        else:
            arguments += [f"--{name}", *texts]
    try:
        parser = _Parser(cast(Any, types), allow_abbrev=False)
        return parser.parse_args_into_dataclasses(arguments, look_for_args_file=False)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def override(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """
    A copy of nested values in which `a.b=value` sets `b` in the section `a`; the value is read as YAML.

    Raises:
        ValueError: for an override without `=`, or one that leads into what is no section.
    """
    values = copy.deepcopy(values)
    for text in overrides:
        path, equals, value = text.partition("=")
        if not equals or not path:
            raise ValueError(f"{text!r} is no override; write key=value, such as training.learning_rate=1e-4.")
        *sections, key = path.split(".")
        place = values
        for section in sections:
            if place.get(section) is None:
                place[section] = {}
            place = place[section]
            if not isinstance(place, dict):
                raise ValueError(f"{text!r}: {section} is {place!r} and has no entries.")
        place[key] = yaml.load(value, Loader)
    return values


def merge(values: dict[str, Any], changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Nested values with some of them changed; sections are merged, and everything else is replaced."""
    result = dict(values)
    for key, value in changes.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, Mapping):
            result[key] = merge(old, value, f"{where}.{key}")
        else:
            result[key] = value
    return result


__all__ = [
    "Augmentation",
    "Distillation",
    "Loader",
    "Settings",
    "check_keys",
    "merge",
    "nearest",
    "override",
    "parse",
]
