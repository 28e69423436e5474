"""Weight-file names, form and structure in their headers, and what a model with two forms has."""

import json
import os
import re
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeGuard

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME


DIGEST_KEY, FORM_KEY = "fusible_digest", "fusible_form"
KERNEL_FOLDER = "s4-kernels"  # beside the weights of a model that takes its kernels along


class FormConfig(Protocol):
    """Configuration of a model with two forms."""

    fused: bool
    auto_map: Any

    @property
    def model_type(self) -> str: ...

    def structure_digest(self) -> str:
        """Fingerprint of the form and of the options that tensor shapes do not show."""


class FusibleModel(Protocol):
    """
    A `PreTrainedModel` with two forms. What is saved and published may also be a plain one.

    It is told by `is_fusible_model` and not by its class: remote code brings a class of its own.
    """

    training: bool
    model_tags: list[str] | None
    input_modalities: str | list[str]
    _auto_class: Any

    def __init__(self, config: Any) -> None: ...

    @property
    def config(self) -> FormConfig: ...

    @property
    def config_class(self) -> type: ...

    @property
    def _auto_maps(self) -> Mapping[type, Mapping[str, str]]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """Random inputs by name, whose first axis is the batch."""

    @property
    def has_fused_form(self) -> bool:
        """Whether the options of the configuration leave an inference form."""

    def fuse(self) -> PreTrainedModel:
        """The inference form, in eval mode."""

    def eval(self) -> PreTrainedModel: ...

    def _finish_save(self, folder: Path) -> None: ...


def is_fusible_model(model: PreTrainedModel) -> TypeGuard[FusibleModel]:
    """Whether a model has two forms."""
    return "fused" in model.config.__dict__


def is_weight_file(name: str, variant: str | None = None) -> bool:
    """Whether a model's weights, or the index of their shards, are saved under this name."""
    infix = f".{re.escape(variant)}" if variant else ""
    whole_or_shard = rf"model{infix}(-\d{{5}}-of-\d{{5}})?\.safetensors"
    return re.fullmatch(rf"{whole_or_shard}|model\.safetensors\.index{infix}\.json", name) is not None


def goes_with_weights(name: str, variant: str | None = None) -> bool:
    """Whether what has this name, a file or a folder, is superseded as a whole by other weights and what they need."""
    return is_weight_file(name, variant) or name.partition("/")[0] == KERNEL_FOLDER


def files_in(folder: Path) -> list[str]:
    """Names of all files, those in folders with their path."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def no_way_back(path: str | os.PathLike) -> str:
    """The message for whoever asks for the training form of fused weights."""
    return (
        f"{path} holds fused weights; the training form cannot be recovered from them. Load it without fused=False, "
        "or load the training checkpoint it was made from."
    )


def sign(file: Path, config: FormConfig) -> None:
    """Writes form and structure digest into the header of a weight file; transformers has no argument for them."""
    metadata = {FORM_KEY: "fused" if config.fused else "training", DIGEST_KEY: config.structure_digest()}
    copy_file = file.with_suffix(".tmp")
    with open(file, "rb") as source, open(copy_file, "wb") as destination:
        header = json.loads(source.read(struct.unpack("<Q", source.read(8))[0]))
        header["__metadata__"] = header.get("__metadata__", {}) | metadata
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # tensors stay aligned
        destination.write(struct.pack("<Q", len(text)) + text)
        shutil.copyfileobj(source, destination, 2**20)
    os.replace(copy_file, file)


def check_signature(file: str | os.PathLike, config: FormConfig) -> None:
    """
    Compares a weight file with the configuration that it is to be read with.

    Raises:
        OSError: if the file is cut off.
        ValueError: if the weights are of another form or structure; files without our entries pass.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
    except SafetensorError as error:
        raise OSError(f"{file} is no complete safetensors file ({error}). Download or save it again.") from error
    form = metadata.get(FORM_KEY)
    if form == "fused" and not config.fused:
        raise ValueError(no_way_back(file))
    if form == "training" and config.fused:
        raise ValueError(f"{file} holds the training form but the configuration says fused. Load it with fused=True.")
    if metadata.get(DIGEST_KEY, config.structure_digest()) != config.structure_digest():
        raise ValueError(
            f"{file} was saved with another configuration than the one given by {CONFIG_NAME} or arguments: options "
            f"that change the function differ. Restore its {CONFIG_NAME}, or leave out the arguments."
        )


__all__ = [
    "KERNEL_FOLDER",
    "FormConfig",
    "FusibleModel",
    "check_signature",
    "files_in",
    "goes_with_weights",
    "is_fusible_model",
    "is_weight_file",
    "no_way_back",
    "sign",
]
