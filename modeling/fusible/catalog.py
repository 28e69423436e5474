"""The settings of published models that come with fusible, from `hub_configs`."""

from pathlib import Path
from typing import Any

import yaml
from rich.table import Table


RECIPE_NAME, CARD_DATA_NAME = "recipe.yaml", "card.yaml"


def catalog_folder() -> Path:
    """
    Where the settings are: inside an installed package, or beside `modeling` in the repository.

    Raises:
        FileNotFoundError: if they are in neither place.
    """
    package = Path(__file__).parent
    places = [package / "hub_configs", package.parents[1] / "hub_configs"]
    for place in places:
        if place.is_dir():
            return place
    raise FileNotFoundError(f"fusible's settings are not there; looked for {' and '.join(map(str, places))}.")


def names() -> list[str]:
    """Of all settings, which are folders with a recipe."""
    return sorted(file.parent.name for file in catalog_folder().glob(f"*/{RECIPE_NAME}"))


def find_recipe(name: str) -> Path:
    """
    The recipe that is meant: a file or folder, or one of `names`.

    Raises:
        FileNotFoundError: if it is neither.
    """
    for place in (Path(name), catalog_folder() / name):
        if place.is_file() or (place / RECIPE_NAME).is_file():
            return place / RECIPE_NAME if place.is_dir() else place
    raise FileNotFoundError(f"{name} is no recipe, no folder with a {RECIPE_NAME}, and none of: {', '.join(names())}.")


def describe_setting(name: str) -> dict[str, Any]:
    """
    Method, number of parameters of the training form, data and the paper's numbers of one of `names`.

    The paper's numbers and their source are those of `card.yaml`. Where these do not have the number of parameters,
    it is counted.
    """
    # here, so that shells complete names without a wait for torch
    import torch
    from transformers import AutoConfig

    import fusible

    from .form_facts import count_parameters
    from .hub import METHODS

    folder = catalog_folder() / name
    config = AutoConfig.from_pretrained(folder)
    recipe, card = (
        yaml.safe_load((folder / file).read_text(encoding="utf-8")) for file in (RECIPE_NAME, CARD_DATA_NAME)
    )
    paper = card.get("paper", {})
    millions = paper.get("training", {}).get("parameters_m")
    if millions is None:
        with torch.device("meta"):
            millions = round(count_parameters(getattr(fusible, config.architectures[0])(config)) / 1e6, 1)
    return {
        "name": name,
        "method": METHODS[config.model_type].name,
        "model_type": config.model_type,
        "dataset": recipe["dataset"],
        "parameters_m": millions,
        "expected": recipe.get("expected"),
        "paper": paper,
    }


def catalog_table(settings: list[dict[str, Any]]) -> Table:
    """Settings for the terminal."""
    caption = "fused and top-1: the papers' numbers; what they are of and where they stand, says --json"
    table = Table("name", "method", "data", "parameters, M", "fused, M", "top-1, %", caption=caption)
    table.columns[0].no_wrap = True
    for setting in settings:
        paper = setting["paper"]
        fused = paper.get("fused", {})
        values = [setting["parameters_m"], fused.get("parameters_m", ""), fused.get("top1", "")]
        method = setting["method"].partition(" (")[0]
        table.add_row(setting["name"], method, setting["dataset"], *map(str, values))
    return table


__all__ = ["catalog_folder", "catalog_table", "describe_setting", "find_recipe", "names"]
