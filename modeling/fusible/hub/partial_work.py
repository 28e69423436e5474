"""Work that goes on after its process was killed: tensors in a hidden folder beside what they become."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from transformers.utils import logging


logger = logging.get_logger(__name__)


class TensorFiles(MutableMapping[int, dict[str, torch.Tensor]]):
    """
    Tensors by number, each number a file that is there whole or not at all.

    Args:
        folder: made when the first one is set.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _file(self, number: int) -> Path:
        return self.folder / f"{number}.safetensors"

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        try:
            return load_file(self._file(number))
        except (FileNotFoundError, SafetensorError) as error:
            raise KeyError(number) from error

    def __setitem__(self, number: int, tensors: dict[str, torch.Tensor]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self._file(number).with_suffix(f".{os.getpid()}")
        with part.open("wb") as file:
            file.write(save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, self._file(number))

    def __delitem__(self, number: int) -> None:
        self._file(number).unlink()

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(int(file.stem) for file in self.folder.glob("*.safetensors")))

    def __len__(self) -> int:
        return len(list(self.folder.glob("*.safetensors")))


class PartialWork:
    """
    What is there already of something that is to become a folder.

    Args:
        destination: that folder; the work is beside it, hidden.
    """

    def __init__(self, destination: Path) -> None:
        # not resolved: a link to the destination has a place of its own
        target = Path(os.path.abspath(destination))
        self.folder = target.with_name(f".{target.name}.partial")

    @contextmanager
    def kept_if_killed(self) -> Iterator[None]:
        """Removes the work when the block is done, and where the input was wrong; not if it ends in another way."""
        try:
            yield
        except ValueError:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        shutil.rmtree(self.folder, ignore_errors=True)

    def files(self, key: str, is_first: bool = True) -> TensorFiles:
        """
        The part of the work that a key is for.

        Args:
            key: of all that the work depends on.
            is_first: of the parts. If there is none for this key, work for other keys is thrown away.
        """
        found = TensorFiles(self.folder / key)
        if len(found):
            logger.warning(f"Going on after {len(found)} blocks that an interrupted run has converted.")
        elif is_first and self.folder.exists():
            logger.warning(f"{self.folder} is of a run with other weights, data or options; starting anew.")
            shutil.rmtree(self.folder)
        return found


def digest_of(*values: Any) -> str:
    """A name for tensors, mappings and lists of these, and what JSON knows: equal for equal contents."""
    digest = hashlib.sha256()
    for value in values:
        _add(digest, value)
    return digest.hexdigest()[:32]


def _add(digest: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        digest.update(f"{value.dtype}{list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, Mapping):
        for name, part in value.items():
            _add(digest, name)
            _add(digest, part)
    elif isinstance(value, list):
        digest.update(f"list of {len(value)}".encode())
        for part in value:
            _add(digest, part)
    else:
        digest.update(json.dumps(value).encode() + b"\n")


__all__ = ["PartialWork", "TensorFiles", "digest_of"]
