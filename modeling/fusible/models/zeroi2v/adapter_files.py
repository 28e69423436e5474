"""Files of trained ZeroI2V adapters, without the frozen image model."""

import hashlib
import math
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
FINGERPRINT_KEY = "frozen_sha256_"  # and a dtype's name
MAGNITUDE_KEY = "frozen_magnitude"  # of adapters that have no fingerprints
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@torch.no_grad()
def fingerprint(parameters: list[nn.Parameter], dtype: torch.dtype) -> str:
    """Digest (64 hex digits) of all values, rounded to a dtype; neither names nor the order of parameters count."""
    digests = []
    for parameter in parameters:
        values = parameter.detach().to("cpu", dtype).contiguous()
        digest = hashlib.sha256(f"{list(values.shape)}".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().tobytes())
        digests.append(digest.hexdigest())
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


def fingerprints(parameters: list[nn.Parameter]) -> dict[str, str]:
    """Of values in the dtype that they have and in narrower ones, by name: models are loaded in any of them."""
    own = {parameter.dtype for parameter in parameters}
    return {
        f"{FINGERPRINT_KEY}{name}": fingerprint(parameters, dtype)
        for name, dtype in DTYPES.items()
        if all(one == dtype or torch.finfo(one).bits > torch.finfo(dtype).bits for one in own)
    }


@torch.no_grad()
def magnitude(parameters: list[nn.Parameter]) -> float:
    """Mean absolute value of all elements."""
    total = sum(parameter.abs().sum(dtype=torch.float64) for parameter in parameters)
    return float(total) / max(1, sum(parameter.numel() for parameter in parameters))


def check_image_model(file: Path, frozen: list[nn.Parameter]) -> None:
    """
    Compares an image model with the one that an adapter was trained on, by the values of all frozen parameters.

    Raises:
        ValueError: if they differ, or are in dtypes of which neither can be rounded to the other.
    """
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata() or {}
    saved = {name: value for name, value in metadata.items() if name.startswith(FINGERPRINT_KEY)}
    other = f"{file} was trained on another image model; its weights are not these."
    if not saved:
        # wide enough for weights in half precision; refuses inf as well, and NaN, of a file without the value
        expected = float(metadata.get(MAGNITUDE_KEY, "nan"))
        if not abs(magnitude(frozen) - expected) <= 1e-3 * expected < math.inf:
            raise ValueError(other)
        logger.warning(f"{file} knows little of its image model, so that a similar one would pass. Save it again.")
        return
    found = fingerprints(frozen)
    common = saved.keys() & found.keys()
    if not common:
        raise ValueError(
            f"{file} was trained on weights in {', '.join(saved).replace(FINGERPRINT_KEY, '')}, which cannot be "
            f"compared with these in {frozen[0].dtype}: load the image model in that dtype."
        )
    if any(saved[name] != found[name] for name in common):
        raise ValueError(other)


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
        save_file(tensors, stage / ADAPTER_WEIGHTS, {"format": "pt", **fingerprints(frozen)})
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
        ValueError: if it was trained on another image model, or has not the tensors that belong on this one.
    """
    check_image_model(file, frozen)
    tensors = load_file(file)
    wrong = [name for name in sorted(trained.keys() ^ tensors.keys()) if name.startswith("backbone.")]
    for name in sorted(trained.keys() & tensors.keys()):
        if tensors[name].shape != trained[name].shape or not tensors[name].is_floating_point():
            wrong.append(f"{name} {list(tensors[name].shape)}, which must be {list(trained[name].shape)}")
    if wrong:
        raise ValueError(f"{file} does not fit this model: {'; '.join(wrong[:3])}. Save the adapter again.")
    # a head in the file that this class has not is left out
    missing = trained.keys() - tensors.keys()
    if missing:
        logger.warning(f"{file} has no {', '.join(sorted(missing))}: they are new and need training.")
    for name in trained.keys() & tensors.keys():
        trained[name].copy_(tensors[name])


__all__ = ["find_adapter", "load_adapter_", "write_adapter"]
