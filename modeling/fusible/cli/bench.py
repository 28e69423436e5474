"""The command `fusible bench`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._common import DtypeName, Json, Revision, recipe_names, show


if TYPE_CHECKING:
    from rich.table import Table


def bench(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder or Hub repository of a saved model, or a name of fusible list.",
            show_default=False,
            autocompletion=recipe_names,
        ),
    ],
    revision: Revision = None,
    batch_size: Annotated[list[int] | None, typer.Option(min=1, help="May be repeated.  [default: 1, 8]")] = None,
    dtype: DtypeName = None,
    device: Annotated[str | None, typer.Option(help="Such as cuda:1; the accelerator by default.")] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Both forms with torch.compile.")] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Of which the median is taken.")] = 30,
    json: Json = False,
) -> None:
    """
    Time both forms of a model side by side on this machine; a name of fusible list is timed with random weights.

    Examples:

        fusible bench user/my-model --batch-size 1 --batch-size 32

        fusible bench repavit-vit-base-0.75 --dtype bfloat16 --json
    """
    rows = time_forms(source, batch_size or [1, 8], revision, dtype, device, compiled, repeats)
    show(rows, json, times_table(source, rows))


def time_forms(
    source: str,
    batch_sizes: Sequence[int],
    revision: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    compiled: bool = False,
    repeats: int = 30,
) -> list[dict[str, Any]]:
    """
    `compare_forms` for each batch size.

    Args:
        source: folder or Hub repository, or one of `catalog.names`, whose model gets random weights.
        batch_sizes: a row for each.
        revision: of the repository.
        dtype: name of torch's; the model's by default.
        device: name of torch's; the accelerator by default.
        compiled: with `torch.compile`.
        repeats: of each measurement.

    Raises:
        ValueError: if the model is fused already or none of fusible's, or the dtype or device is unknown.
    """
    from ..benchmark import compare_forms
    from ..core.modeling import FusiblePreTrainedModel
    from ..recipes.catalog import catalog_folder, names
    from ..recipes.recipe import Recipe
    from ..saved_models import find_device, find_dtype, load

    wanted = None if dtype is None else find_dtype(dtype)
    chosen = None if device is None else find_device(device)
    # a folder wins over a recipe of the same name, as it has trained weights
    if not Path(source).exists() and source in names():
        recipe = Recipe.load(catalog_folder() / source)
        # random weights: the time does not depend on their values
        model: Any = recipe.model_class(recipe.config)
    else:
        model = load(source, revision)
    if not isinstance(model, FusiblePreTrainedModel):
        raise ValueError(f"{source} is a plain {model.config.model_type!r} model, which has one form only.")
    if model.config.fused:
        raise ValueError(f"{source} is fused already; give the training form that it was made from.")
    options: dict[str, Any] = {"dtype": wanted, "device": chosen, "compiled": compiled, "repeats": repeats}
    return [compare_forms(model, size, **options) for size in batch_sizes]


def times_table(source: str, rows: Sequence[dict[str, Any]]) -> "Table":
    """The rows of `time_forms` for the terminal."""
    from rich.table import Table

    kind = "{device}, {threads} threads, {dtype}".format(**rows[0]) + (", compiled" if rows[0]["compiled"] else "")
    table = Table(
        "batch", "training form, ms", "fused, ms", "fused, inputs/s", "times faster", title=f"{source}: {kind}"
    )
    for row in rows:
        before, after = row["training"], row["fused"]
        numbers = [before["latency_ms"], after["latency_ms"], after["inputs_per_second"], row["speedup"]]
        table.add_row(str(row["batch_size"]), *(f"{number:.2f}" for number in numbers))
    return table


__all__ = ["bench"]
