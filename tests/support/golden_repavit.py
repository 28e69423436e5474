"""Outputs of the RePaViT authors' own code, with their weights."""

import json

from safetensors.torch import load_file

from .paths import GOLDEN


DATA = GOLDEN / "repavit"
CASES = sorted(file.stem for file in DATA.glob("*.safetensors"))


def read(case: str) -> tuple[dict, dict, dict, dict]:
    """Their training form, fused form (empty for the baseline), inputs and outputs, and the configuration."""
    tensors = load_file(DATA / f"{case}.safetensors")
    forms = [
        {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        for prefix in ("state_dict.", "fused_state_dict.")
    ]
    return *forms, tensors, json.loads((DATA / f"{case}.json").read_text())
