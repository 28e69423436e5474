"""What weight files say of themselves: which names they have, and the form and structure in their headers."""

import json
import os
import re
import shutil
import struct
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.utils import CONFIG_NAME

from .configuration_fusible import FusibleConfig


DIGEST_KEY, FORM_KEY = "fusible_digest", "fusible_form"
KERNEL_FOLDER = "s4-kernels"  # beside the weights of a model that takes its kernels along


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


def sign(file: Path, config: FusibleConfig) -> None:
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


def check_signature(file: str | os.PathLike, config: FusibleConfig) -> None:
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
    "check_signature",
    "files_in",
    "goes_with_weights",
    "is_weight_file",
    "no_way_back",
    "sign",
]
