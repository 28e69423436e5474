"""What the conversion scripts share: reading checkpoints, strict renaming by a table, and ImageNet's particulars."""

import argparse
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import CLIPImageProcessorPil
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD


T = TypeVar("T")
IMAGENET_CLASSES = Path(__file__).with_name("imagenet1k_classes.txt")


def read_entries(file: Path, also_safe: Sequence[Any] = ()) -> Any:
    """
    What a checkpoint holds, without running any code that it may carry.

    Args:
        file: `.safetensors`, or a file of `torch.save`.
        also_safe: what unpickling may use beside tensors, plain values and `argparse.Namespace`; as for
            `torch.serialization.safe_globals`.

    Raises:
        OSError: if the file is not there, cut off, or of another kind.
        ValueError: if it holds objects that may run code.
    """
    if _is_torchscript(file):
        raise ValueError(
            f"{file} is a TorchScript program, and loading that may run code. If you trust it, save its tensors: "
            "torch.save(torch.jit.load(file).state_dict(), another_file)."
        )
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        with torch.serialization.safe_globals([argparse.Namespace, *also_safe]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused:
            raise ValueError(
                f"{file} holds a {refused[1]}, and unpickling that may run code. Only tensors, plain values and "
                "argparse.Namespace are read; nothing was loaded."
            ) from None  # torch's own message advises to allow everything
        raise OSError(f"{file} is cut off, or no file of torch.save or safetensors. Download it again.") from error


def _is_torchscript(file: Path) -> bool:
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())


def state_dict_in(content: Any, file: Path) -> dict[str, torch.Tensor]:
    """
    The tensors of a checkpoint by name.

    Args:
        content: what the file holds. The state dict may be all of it or its entry `model` or `state_dict` (other
            entries, such as the optimizer's, are ignored); a prefix `module.` of all names goes.
        file: for messages.

    Raises:
        ValueError: if there is no state dict.
    """
    entries = content if isinstance(content, Mapping) else {}
    tensors = next(
        (entries[name] for name in ("model", "state_dict") if isinstance(entries.get(name), Mapping)), entries
    )
    if not tensors or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise ValueError(f"{file} holds no state dict, neither as a whole nor as its entry 'model' or 'state_dict'.")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return dict(tensors)


def read_checkpoint(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """
    The tensors and the training arguments of a checkpoint, without running any code that it may carry.

    Args:
        file: as for `read_entries`, with a state dict as for `state_dict_in`.

    Returns:
        Tensors by name, and the values of the entry `args` by name (none if there is no such entry).

    Raises:
        OSError: if the file is not there, cut off, or of another kind.
        ValueError: if it holds objects that may run code, or no state dict.
    """
    content = read_entries(file)
    tensors = state_dict_in(content, file)
    arguments = content.get("args")
    return tensors, vars(arguments) if isinstance(arguments, argparse.Namespace) else {}


def rename(state_dict: Mapping[str, torch.Tensor], table: Mapping[str, str | None]) -> dict[str, torch.Tensor]:
    """
    Renames every tensor by the first pattern of the table that matches its whole name.

    Args:
        state_dict: tensors by their old names.
        table: regular expression -> replacement, as for `re.sub`, or `None` for tensors to leave out.

    Raises:
        ValueError: if names are left that no pattern matches, or two tensors get one name.
    """
    renamed: dict[str, torch.Tensor] = {}
    unknown = []
    for name, tensor in state_dict.items():
        pattern = next((pattern for pattern in table if re.fullmatch(pattern, name)), None)
        if pattern is None:
            unknown.append(name)
            continue
        replacement = table[pattern]
        if replacement is None:
            continue
        new_name = re.sub(pattern, replacement, name)
        if new_name in renamed:
            raise ValueError(f"Two tensors would be named {new_name}; the second was {name}.")
        renamed[new_name] = tensor
    if unknown:
        raise ValueError(f"{len(unknown)} tensors are of no known name: {', '.join(sorted(unknown)[:10])}")
    return renamed


def agreed(option: str, given: T | None, found: T | None, source: str) -> T | None:
    """
    The value of a command line option: the one given, or else the one found in the checkpoint.

    Raises:
        ValueError: if there are both and they differ.
    """
    if given is not None and found is not None and given != found:
        raise ValueError(
            f"{option} {given} contradicts {source}: {found}. Leave out {option}, or convert another file."
        )
    return found if given is None else given


def class_names(num_classes: int) -> dict[int, str]:
    """
    Names by class id: of ImageNet-1k for 1000 classes, otherwise the ids themselves.

    ImageNet's are the WordNet lemmas of its synsets, in the order of the synsets' ids, which is that of `ImageFolder`.
    Two classes are called "crane", the bird (134) and the machine (517).
    """
    if num_classes != 1000:
        return {index: str(index) for index in range(num_classes)}
    return dict(enumerate(IMAGENET_CLASSES.read_text(encoding="utf-8").splitlines()))


def image_processor(image_size: int) -> CLIPImageProcessorPil:
    """ImageNet's evaluation: short side to `image_size / 0.875`, bicubic, centre crop, mean and deviation."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": int(image_size / 0.875)},
        crop_size={"height": image_size, "width": image_size},
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )
