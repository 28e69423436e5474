"""Atomic saving of models, with two forms or plain ones."""

import os
import shutil
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME, logging

from .atomic import atomic_folder
from .weight_files import (
    ADAPTER_FILES,
    code_files,
    files_in,
    is_fusible_model,
    is_superseded_with_weights,
    is_weight_file,
    warn_of_non_finite,
    write_form_metadata,
)


logger = logging.get_logger(__name__)


def save_model(
    model: PreTrainedModel,
    folder: str | os.PathLike,
    writes: bool = True,
    is_main_process: bool = True,
    state_dict: dict[str, torch.Tensor] | None = None,
    processor: Any | None = None,
    **kwargs: Any,
) -> list[str]:
    """
    Saves a model as `PreTrainedModel.save_pretrained` does, but all at once or not at all.

    Args:
        model: one with two forms, whose weight files name form and structure in their headers, or a plain one.
        folder: its other files stay as they are; but an adapter beside weights that are replaced moves to a folder
            inside, as whoever loads the new weights would get them adapted.
        writes: whether this process writes weights.
        is_main_process: whether it writes the rest.
        state_dict: weights to save instead of the model's own.
        processor: what makes the model's inputs, if that is to be saved with it.
        **kwargs: the other arguments of `PreTrainedModel.save_pretrained`.

    Returns:
        Names of the files written, those in folders with their path.
    """
    if kwargs.get("distributed_checkpoint"):  # written by all ranks, each its own files
        PreTrainedModel.save_pretrained(model, folder, is_main_process, state_dict, **kwargs)
        return os.listdir(folder)
    fusible = model if is_fusible_model(model) else None
    # code of the model that was there before, which the new one may not have
    variant, code = kwargs.get("variant"), code_files(Path(folder))

    adapter: set[str] = set()

    def is_stale(name: str) -> bool:
        return is_superseded_with_weights(name, variant) or name in code or name in adapter

    # ranks that write nothing still take part in gathering shards, and need some folder for it
    with atomic_folder(folder, is_stale, CONFIG_NAME) if writes else TemporaryDirectory() as stage:
        if fusible is not None:
            # Trainer reloads checkpoints by the names in memory, which the original format would change
            kwargs["save_original_format"] = False
        state_dict = None if state_dict is None else dict(state_dict)  # it gets emptied
        warn_of_non_finite(model.state_dict() if state_dict is None else state_dict, f"What is saved in {folder}")
        PreTrainedModel.save_pretrained(model, stage, is_main_process, state_dict, **kwargs)
        if fusible is not None:
            # adapters have other names and no form
            weights = sorted(Path(stage).glob("model*.safetensors"))
            write_form_metadata(fusible.config, *weights, saved_class=type(model).__name__.removeprefix("FSDP"))
            fusible._save_extra_files(Path(stage))
        if processor is not None and is_main_process:
            processor.save_pretrained(stage)
        names = files_in(Path(stage))
        if writes and any(is_weight_file(name, variant) for name in names):  # unlike a save of adapters alone
            adapter |= {name for name in ADAPTER_FILES if (Path(folder) / name).is_file()}
            _keep_adapter(Path(folder), Path(stage), adapter)
        return names


def _keep_adapter(folder: Path, stage: Path, names: set[str]) -> None:
    """Copies files of an adapter into a folder beside the new weights, from which only who asks for it loads it."""
    if not names:
        return
    aside = next(name for name in map("adapter-before-{}".format, count(1)) if not (folder / name).exists())
    (stage / aside).mkdir()
    for name in names:
        shutil.copy2(folder / name, stage / aside / name)
    logger.warning(
        f"{folder} had an adapter, which loading the new weights would apply to them. It is in {folder / aside} now."
    )


__all__ = ["save_model"]
