"""Reads the tensors of a TorchScript file, such as OpenAI's of CLIP, without running its program."""

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch


STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}
LISTS = ("build_boollist", "build_doublelist", "build_intlist", "build_tensorlist")


class ScriptModule:
    """Stands for any module of the program; its attributes are what was saved."""


def _rebuild_tensor(storage: torch.Tensor, offset: int, size: tuple, stride: tuple, *_: Any) -> torch.Tensor:
    last = offset + sum((count - 1) * step for count, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride), default=0) < 0 or (0 not in size and last >= len(storage)):
        raise pickle.UnpicklingError("a tensor reaches beyond its data")
    return torch.as_strided(storage, size, stride, offset)


class _Reader(pickle.Unpickler):
    """Makes tensors and `ScriptModule`s, and nothing else."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{folder}/data.pkl")))
        self.archive, self.folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return ScriptModule
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if module == "torch.jit._pickle" and name in LISTS:
            return list
        raise pickle.UnpicklingError(f"{module}.{name} is nothing that a tensor needs")

    def persistent_load(self, pid: Any) -> torch.Tensor:
        _, dtype, key, _, _ = pid
        data = bytearray(self.archive.read(f"{self.folder}/data/{key}"))
        return torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)


def is_torchscript(file: Path) -> bool:
    """Whether this is a file of `torch.jit.save`."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())


def read_torchscript(file: Path) -> dict[str, torch.Tensor]:
    """
    The state dict of the program in a file of `torch.jit.save`.

    Raises:
        OSError: if the file is damaged, or holds something else than modules and tensors.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            program = _Reader(archive, name.removesuffix("/data.pkl")).load()
    except (zipfile.BadZipFile, pickle.UnpicklingError, KeyError, ValueError, RuntimeError, StopIteration) as error:
        raise OSError(f"{file} is a TorchScript file that cannot be read: {error}") from error
    return dict(_tensors(program, ""))


def _tensors(module: Any, prefix: str) -> Any:
    for name, value in vars(module).items():
        if isinstance(value, torch.Tensor):
            yield prefix + name, value
        elif isinstance(value, ScriptModule):
            yield from _tensors(value, f"{prefix}{name}.")
