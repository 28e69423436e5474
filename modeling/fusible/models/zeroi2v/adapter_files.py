"""Files of trained ZeroI2V adapters, without the frozen image model."""

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.utils import cached_file, logging

from ...hub.atomic import atomic_folder, finish_save
from ...hub.weight_files import check_form_metadata, write_form_metadata
from .configuration_zeroi2v import ZeroI2VConfig


logger = logging.get_logger(__name__)
ADAPTER_WEIGHTS, ADAPTER_CONFIG = "zeroi2v_adapter.safetensors", "zeroi2v_adapter.json"
MAGNITUDE_KEY = "frozen_magnitude"


@torch.no_grad()
def magnitude(parameters: list[nn.Parameter]) -> float:
    """Mean absolute value of all elements: tells image models of one shape apart, whatever their dtype."""
    total = sum(parameter.abs().sum(dtype=torch.float64) for parameter in parameters)
    return float(total) / max(1, sum(parameter.numel() for parameter in parameters))


def write_adapter(
    folder: str | os.PathLike, config: ZeroI2VConfig, trained: dict[str, nn.Parameter], frozen: list[nn.Parameter]
) -> None:
    """
    Writes the trained parameters and the configuration into a folder, both or none.

    Raises:
        OSError: if the folder cannot be written; it is then as it was.
    """
    with atomic_folder(folder, lambda name: name == ADAPTER_WEIGHTS, ADAPTER_CONFIG) as stage:
        # safetensors does not write views with gaps
        tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in trained.items()}
        save_file(tensors, stage / ADAPTER_WEIGHTS, {"format": "pt", MAGNITUDE_KEY: repr(magnitude(frozen))})
        write_form_metadata(config, stage / ADAPTER_WEIGHTS)
        (stage / ADAPTER_CONFIG).write_text(config.to_json_string(), encoding="utf-8")


def find_adapter(adapter: str | os.PathLike, **download: Any) -> tuple[ZeroI2VConfig, Path]:
    """
    Configuration and weight file of a saved adapter.

    Args:
        adapter: folder or Hub repository.
        **download: `token` and `cache_dir`.

    Raises:
        OSError: if there is none.
        ValueError: if they do not belong together.
    """
    finish_save(adapter)
    names = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
    files = [Path(str(cached_file(adapter, name, **download))) for name in names]
    config = ZeroI2VConfig.from_json_file(files[0])
    check_form_metadata(config, files[1])
    return config, files[1]


@torch.no_grad()
def load_adapter_(file: Path, trained: dict[str, nn.Parameter], frozen: list[nn.Parameter]) -> None:
    """
    Loads the weights of an adapter into a model's parameters; a head that the file has not stays as it is.

    Raises:
        ValueError: if it was trained on another image model.
    """
    with safe_open(file, framework="pt") as opened:
        expected = float((opened.metadata() or {}).get(MAGNITUDE_KEY, "nan"))
    # wide enough for weights in half precision; written so that NaN, of a file without the value, is refused
    if not abs(magnitude(frozen) - expected) <= 1e-3 * expected:
        raise ValueError(f"{file} was trained on another image model; its weights are not these.")
    tensors = load_file(file)
    missing = trained.keys() - tensors.keys()
    if missing:
        logger.warning(f"{file} has no {', '.join(sorted(missing))}: they are new and need training.")
    # a head in the file that this class has not is left out
    for name in trained.keys() & tensors.keys():
        trained[name].copy_(tensors[name])


__all__ = ["find_adapter", "load_adapter_", "write_adapter"]
