"""Reading the files of `hub_configs`, and checks of what is in them."""

from pathlib import Path
from typing import Any

import yaml

from fusible.recipes.parsing import read_recipe


def check(value: Any, schema: Any, where: str) -> None:
    """Types are exact: YAML reads `1e-3`, without a point, as a string."""
    if isinstance(schema, dict):
        assert isinstance(value, dict), where
        known = {key.removesuffix("?"): key for key in schema}
        assert value.keys() <= known.keys(), f"{where}: unknown {value.keys() - known.keys()}"
        required = {key for key in schema if not key.endswith("?")}
        assert value.keys() >= required, f"{where}: missing {required - value.keys()}"
        for key, entry in value.items():
            check(entry, schema[known[key]], f"{where}.{key}")
    elif isinstance(schema, list):
        assert isinstance(value, list) and value, where
        for entry in value:
            check(entry, schema[0], f"{where}[]")
    else:
        assert type(value) is schema, f"{where}: {value!r} is no {schema.__name__}"


def read(folder: Path, name: str) -> dict[str, Any]:
    if name == "recipe.yaml":
        return read_recipe(folder / name)
    return yaml.safe_load((folder / name).read_text(encoding="utf-8"))
