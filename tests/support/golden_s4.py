"""Outputs of the S4 authors' own code, with their weights, and the command that converts these."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from conversion_scripts.convert_s4 import main

from .paths import GOLDEN


DATA = GOLDEN / "s4"
CASES = sorted(file.stem for file in DATA.glob("*.json"))


def read(name: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict]:
    """The authors' weights, the other tensors, and the facts, with their configuration."""
    tensors = load_file(DATA / f"{name}.safetensors")
    names = [key for key in tensors if key.startswith("state_dict.")]
    weights = {key.removeprefix("state_dict."): tensors.pop(key) for key in names}
    return weights, tensors, json.loads((DATA / f"{name}.json").read_text())


def run(checkpoint: Path, theirs: dict, *arguments: str) -> Path:
    """Runs the command; returns the folder that it wrote."""
    config, folder = checkpoint.with_name("config.json"), checkpoint.with_name("converted")
    config.write_text(json.dumps(theirs))
    main(["--checkpoint", str(checkpoint), "--config", str(config), "--output", str(folder), *arguments])
    return folder


def convert(name: str, folder: Path, *arguments: str) -> Path:
    """Of a case."""
    weights, _, facts = read(name)
    torch.save(weights, folder / "checkpoint.pt")
    return run(folder / "checkpoint.pt", facts["config"], *arguments)
