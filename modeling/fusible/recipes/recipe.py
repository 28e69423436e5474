"""
Recipes: what a `recipe.yaml` may say, read strictly, and what it means on the machine at hand.

A recipe lies beside the `config.json` of the model that it trains. It may be based on another file (`base: FILE`) and
then says what differs. Keys are checked and unknown ones refused; values may be overridden by `key=value`, where dots
lead into sections: `training.learning_rate=1e-4`.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, TrainingArguments
from transformers.utils import CONFIG_NAME, logging

from .._auto import AUTO_CLASSES
from ..core.modeling import FusiblePreTrainedModel
from ..core.options import check_keys, nearest
from ..saved_models import load_model_class
from .hardware import batch_sizes, default_workers, precision, schedule, uses_deepspeed
from .parsing import RECIPE_NAME, merge, override, read_layers
from .sections import Augmentation, Distillation, Settings, parse


logger = logging.get_logger(__name__)
DEFAULTS: dict[str, Any] = {  # of TrainingArguments, where a recipe says nothing
    "dataloader_drop_last": True,
    "eval_strategy": "epoch",
    "logging_steps": 50,
    "remove_unused_columns": False,
    "report_to": "none",
    "save_strategy": "epoch",
    "save_total_limit": 2,
}
SET_OTHERWISE = {  # fields of TrainingArguments that follow from other keys, which would overrule them in silence
    "bf16": "training.mixed_precision",
    "fp16": "training.mixed_precision",
    "optim": "training.optimizer",
    "output_dir": "output_dir",
    "resume_from_checkpoint": "resume",
}
KINDS = {dict: "a section", list: "a list", bool: "true or false"}
SETTINGS_KEYS = [entry.name for entry in fields(Settings)]
TRAINING_KEYS = [*SETTINGS_KEYS, *(entry.name for entry in fields(TrainingArguments))]


@dataclass
class Recipe:
    """
    A model, its data and how it is trained.

    Args:
        dataset: a name in `data.DATASETS`, or a folder or Hub repository.
        data: options of the data set.
        base_model: weights to start from: a plain model, or one of fusible's.
        model: changes of `config.json`; its `backbone_config` gives way to that of a plain `base_model`, but not
            these changes.
        training: `Settings` and `TrainingArguments`.
        augmentation: see `Augmentation`.
        distillation: see `Distillation`; the teacher is `base_model` where the section names none.
        output_dir: gets checkpoints, the training form and, in `fused`, the inference form; by default
            `out/<folder of the recipe>`.
        resume: "auto" goes on from the last checkpoint, if there is one; "none" starts anew; or a checkpoint's folder.
        push_to_hub: repository for the training form; the inference form goes to the same name and `-fused`.
        private: whether repositories that are made are private.
        hardware: what it was meant for, for readers.
        expected: the published result, for readers.
        variants: what differs in other models, and their results, for readers.
        folder: where `config.json` and processors are.

    Raises:
        ValueError: for an unknown option of a section, or a value of the wrong kind.
    """

    dataset: str
    data: dict = field(default_factory=dict)
    base_model: str | None = None
    model: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)
    augmentation: dict = field(default_factory=dict)
    distillation: dict = field(default_factory=dict)
    output_dir: str | None = None
    resume: str = "auto"
    push_to_hub: str | None = None
    private: bool = False
    hardware: dict = field(default_factory=dict)
    expected: dict = field(default_factory=dict)
    variants: list = field(default_factory=list)
    folder: Path = Path()
    settings: Settings = field(init=False)  # what `training` has beside `TrainingArguments`
    augment: Augmentation = field(init=False)
    distill: Distillation = field(init=False)

    def __post_init__(self) -> None:
        check_keys(self.training, TRAINING_KEYS, "training")
        for key, instead in SET_OTHERWISE.items():
            if self.training.get(key) is not None:
                raise ValueError(f"training.{key} has no effect in a recipe; it is {instead} that says it.")
        # values for TrainingArguments are checked when these are made, which looks for devices
        own = {key: value for key, value in self.training.items() if key in SETTINGS_KEYS}
        self.settings = parse([Settings], own, "training")[0]
        self.augment = parse([Augmentation], self.augmentation, "augmentation")[0]
        self.distill = parse([Distillation], self.distillation, "distillation")[0]

    @classmethod
    def load(cls, path: str | os.PathLike, overrides: Iterable[str] = ()) -> "Recipe":
        """
        Reads a recipe.

        Args:
            path: of the YAML file, or of its folder.
            overrides: `key=value`, see `override`. Another `dataset` does without the recipe's section `data`, which
                has the options of its own.

        Raises:
            FileNotFoundError: if there is no such file, or not the file that it is based on.
            ValueError: for an unknown key, a missing one or a value of the wrong kind, with the name of the file.
        """
        path, overrides = Path(path), list(overrides)
        path = path / RECIPE_NAME if path.is_dir() else path
        layers = read_layers(path)
        # each layer alone first, so that an error names the file that it is in
        for file, layer in layers:
            cls._from_values(layer, path.parent, str(file))
        written = reduce(merge, (layer for _, layer in layers))
        values = override(written, overrides)
        if values.get("dataset") != written.get("dataset"):
            # without the options of the old data set, but with overrides of `data`, which are for the new one
            values = override({key: value for key, value in written.items() if key != "data"}, overrides)
        where = f"{path} with {' '.join(overrides)}" if overrides else str(path)
        recipe = cls._from_values(values, path.parent, where)
        recipe.validate()
        return recipe

    @classmethod
    def _from_values(cls, values: Mapping[str, Any], folder: Path, where: str) -> "Recipe":
        """A recipe with these values, all or some of them; errors say where they are from."""
        entries = {entry.name: entry for entry in fields(cls) if entry.init and entry.name != "folder"}
        for key, value in values.items():
            if key not in entries:
                hint = nearest(key, [*entries, *(f"training.{name}" for name in TRAINING_KEYS)])
                raise ValueError(f"{where} has no key {key!r}. {hint}")
            # types are classes here, as annotations of this module are not postponed to strings
            kind: Any = entries[key].type
            if value is not None and not isinstance(value, kind):
                wanted = KINDS.get(kind, "a text, maybe in quotes")
                raise ValueError(f"{key} of {where} is {value!r}; it must be {wanted}.")
        # null takes back what a base says; a base alone may lack the dataset
        given = {key: value for key, value in values.items() if value is not None}
        try:
            return cls(folder=folder, **({"dataset": ""} | given))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error

    def validate(self) -> None:
        """
        Checks what needs the model's configuration; the sections are checked when the recipe is made.

        Raises:
            ValueError: if no data set is named, or `model` changes what the configuration does not have.
        """
        if not self.dataset:
            raise ValueError(f"The recipe in {self.folder} names no dataset.")
        # properties of configurations, which their fields do not list
        derived = ("num_labels", "id2label", "label2id")
        check_keys(self.model, [*(entry.name for entry in fields(self.config)), *derived], "model")
        for name, changes in self.model.items():
            part = getattr(self.config, name)
            if isinstance(changes, dict) and isinstance(part, PreTrainedConfig):
                known = [*(entry.name for entry in fields(part)), "model_type", *derived]
                check_keys(changes, known, f"model.{name}")

    @cached_property
    def raw_config(self) -> dict[str, Any]:
        """`config.json` with the changes of `model`."""
        text = (self.folder / CONFIG_NAME).read_text(encoding="utf-8")
        return merge(json.loads(text), self.model)

    @cached_property
    def config(self) -> PreTrainedConfig:
        """The model's configuration."""
        values = dict(self.raw_config)
        # from values and not from the file, which `model` changes
        return AutoConfig.for_model(values.pop("model_type"), **values)

    @property
    def model_class(self) -> type[PreTrainedModel]:
        """
        The class that `config.json` names: one of fusible's, or a plain one of transformers, to compare with.

        Raises:
            ValueError: if there is none of that name, or it is a part of fusible's that is not trained by itself.
        """
        model_class = load_model_class(self.config, plain=True)
        if self.config.model_type in AUTO_CLASSES and not issubclass(model_class, FusiblePreTrainedModel):
            raise ValueError(f"{self.folder / CONFIG_NAME} names {model_class.__name__}, which has one form only.")
        return model_class

    @property
    def teacher(self) -> str | None:
        """
        The model to learn from, a folder or Hub repository; `None` if `distillation` says nothing.

        Raises:
            ValueError: if it says something, but neither it nor `base_model` names a model.
        """
        if all(value is None for value in self.distillation.values()):
            return None
        teacher = self.distill.teacher or self.base_model
        if teacher is None:
            raise ValueError("distillation needs a teacher: name one there, or a base_model.")
        return teacher

    @property
    def output(self) -> Path:
        """Where everything goes."""
        return Path(self.output_dir or Path("out") / self.folder.resolve().name)

    def training_arguments(self) -> TrainingArguments:
        """
        What `Trainer` takes, for this machine and number of processes.

        Raises:
            ValueError: if batch sizes do not divide, or schedule or optimizer cannot do what is asked.
        """
        settings = self.settings
        values = DEFAULTS | {key: value for key, value in self.training.items() if key not in SETTINGS_KEYS}
        # by itself, Trainer does not see what launchers say, and would train a copy in each process
        values.setdefault("use_cpu", parse_flag_from_env("ACCELERATE_USE_CPU"))
        use_cpu = bool(values["use_cpu"])
        values |= precision(settings.mixed_precision, use_cpu)
        values.setdefault("dataloader_num_workers", default_workers())
        values.setdefault("dataloader_pin_memory", torch.accelerator.is_available() and not use_cpu)
        if settings.optimizer != "lamb":
            values["optim"] = settings.optimizer
        elif uses_deepspeed(values.get("deepspeed")):
            raise ValueError(
                "training.optimizer is 'lamb', whose steps are as long as each parameter; DeepSpeed gives optimizers "
                "flat pieces of all of them. Use DDP or FSDP2."
            )
        # set by launchers; TrainingArguments know it only when they are made, which needs the batch sizes
        world_size = int(os.environ.get("WORLD_SIZE", 1))
        values |= batch_sizes(settings.global_batch_size, values, world_size)
        scale = self._learning_rate_scale(values, world_size)
        try:
            # YAML reads 1e-3 as a string
            rate = float(values.get("learning_rate", TrainingArguments.learning_rate))
        except (TypeError, ValueError) as error:
            raise ValueError(f"training.learning_rate is {values['learning_rate']!r}, which is no number.") from error
        if not 0 <= rate < math.inf:
            raise ValueError(f"training.learning_rate is {rate}; it must be 0 or more, and finite.")
        values["learning_rate"] = scale * rate
        values |= schedule(settings, values, scale)
        arguments: TrainingArguments = parse(
            [TrainingArguments], values | {"output_dir": str(self.output)}, "training"
        )[0]
        if arguments.n_gpu > 1:  # BatchNorm and experts need a process for each
            logger.warning(f"Training on one of {arguments.n_gpu} devices; accelerate launch uses all of them.")
            # the property n_gpu has no setter; above 1 Trainer would wrap the model in DataParallel
            arguments._n_gpu = 1
        return arguments

    def _learning_rate_scale(self, values: Mapping[str, Any], world_size: int) -> float:
        wanted = self.settings.learning_rate_batch_size
        if wanted is None:
            return 1.0
        per_device = int(values.get("per_device_train_batch_size", TrainingArguments.per_device_train_batch_size))
        # the batch of an optimizer step, over devices and accumulation
        ratio = per_device * world_size * int(values.get("gradient_accumulation_steps", 1)) / wanted
        return ratio if self.settings.learning_rate_scaling == "linear" else ratio**0.5


__all__ = ["DEFAULTS", "Recipe"]
