"""Saving a model, one of ours or a plain one, into a folder and pushing it: all at once or not at all."""

import os
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from huggingface_hub import CommitInfo, ModelCard, ModelCardData
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME

from .checkpoints import files_in, goes_with_weights, sign
from .folders import replaced_folder
from .publishing import CARD_NAME, push_folder


def has_forms(model: PreTrainedModel) -> bool:
    """Whether a model is one of ours; not by our class, of which remote code can have two."""
    return "fused" in model.config.__dict__


def save_model(
    model: PreTrainedModel,
    folder: str | os.PathLike,
    writes: bool = True,
    is_main_process: bool = True,
    state_dict: dict[str, torch.Tensor] | None = None,
    **kwargs: Any,
) -> list[str]:
    """
    Saves a model as `PreTrainedModel.save_pretrained` does, but all at once or not at all.

    Args:
        model: one of ours, whose weight files are signed with form and structure, or a plain one.
        folder: its other files stay as they are.
        writes: whether this process writes weights.
        is_main_process: whether it writes the rest.
        state_dict: weights to save instead of the model's own.
        **kwargs: the other arguments of `PreTrainedModel.save_pretrained`.

    Returns:
        Names of the files written, those in folders with their path.
    """
    if kwargs.get("distributed_checkpoint"):  # written by all ranks, each its own files
        PreTrainedModel.save_pretrained(model, folder, is_main_process, state_dict, **kwargs)
        return os.listdir(folder)
    is_stale = partial(goes_with_weights, variant=kwargs.get("variant"))
    with replaced_folder(folder, is_stale, CONFIG_NAME) if writes else TemporaryDirectory() as stage:
        if has_forms(model):
            # Trainer reloads checkpoints by the names in memory, which the original format would change
            kwargs["save_original_format"] = False
        state_dict = None if state_dict is None else dict(state_dict)  # it gets emptied
        PreTrainedModel.save_pretrained(model, stage, is_main_process, state_dict, **kwargs)
        for file in Path(stage).glob("model*.safetensors") if has_forms(model) else ():
            sign(file, cast(Any, model.config))
        if has_forms(model):
            cast(Any, model)._finish_save(Path(stage))
        return files_in(Path(stage))


def push_model(
    model: PreTrainedModel,
    source: PreTrainedModel,
    folder: Path,
    names: list[str],
    repo_id: str,
    *,
    measure: bool,
    tags: list[str] | str | None = None,
    card_data: dict[str, Any] | None = None,
    **kwargs: Any,
) -> CommitInfo:
    """
    Pushes a saved model with a model card.

    Args:
        model: what was saved.
        source: the model of ours that it was made from, or itself.
        folder: where it was saved.
        names: the files to push.
        repo_id: where to.
        measure: say in the card how much the outputs of the two differ.
        tags: for the card.
        card_data: more metadata for the card.
        **kwargs: the other arguments of `push_folder`.
    """
    all_tags = [*(source.model_tags or []), *([tags] if isinstance(tags, str) else tags or [])]
    card_data = {"tags": list(dict.fromkeys(all_tags)), **(card_data or {})}

    def write(repo_id: str) -> None:
        try:
            from fusible.hub import write_card
        except ImportError:  # remote code, without the package and its template
            ModelCard.from_template(ModelCardData(library_name="transformers", **card_data)).save(folder / CARD_NAME)
        else:
            write_card(folder, model, repo_id, cast(Any, source), card_data, measure=measure)

    return push_folder(folder, names, repo_id, write, **kwargs)


__all__ = ["has_forms", "push_model", "save_model"]
