"""The command `fusible list`."""

# not list.py: a module of that name would hide the builtin in the package's `__init__`
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._common import Json, show


if TYPE_CHECKING:
    from rich.table import Table


def list_recipes(
    method: Annotated[str | None, typer.Option(help="Only those of repavit, ewa, zeroi2v or s4.")] = None,
    json: Json = False,
) -> None:
    """
    The recipes that come with fusible, with the papers' numbers.

    Examples:

        fusible list --method repavit

        fusible list --json
    """
    from ..hub.methods import METHODS
    from ..recipes.catalog import describe_recipe, names

    if method is not None and method not in METHODS:
        raise ValueError(f"There is no method {method!r}; fusible has {', '.join(sorted(METHODS))}.")
    recipes = [describe_recipe(name) for name in names()]
    if method is not None:
        recipes = [recipe for recipe in recipes if recipe["method"] == METHODS[method].name]
    show(recipes, json, recipes_table(recipes))


def recipes_table(recipes: list[dict[str, Any]]) -> "Table":
    """The recipes of `describe_recipe` for the terminal."""
    from rich.table import Table

    caption = "fused and top-1: the papers' numbers; what they are of and where they stand, says --json"
    table = Table("name", "method", "data", "parameters, M", "fused, M", "top-1, %", caption=caption)
    # names are there to be copied
    table.columns[0].no_wrap = True
    for recipe in recipes:
        fused = recipe["paper"].get("fused", {})
        values = [recipe["parameters_m"], fused.get("parameters_m", ""), fused.get("top1", "")]
        method = recipe["method"].partition(" (")[0]
        table.add_row(recipe["name"], method, recipe["dataset"], *map(str, values))
    return table


__all__ = ["list_recipes"]
