"""Options, tables, JSON and error messages that commands share."""

import contextlib
import json as json_module
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer


if TYPE_CHECKING:
    from rich.table import Table

    from ..core.modeling import FusiblePreTrainedModel


def recipe_names(incomplete: str) -> list[str]:
    """Names of `fusible list`, for shells to complete; where none fits, they go on with files."""
    from ..recipes.catalog import names

    return [name for name in names() if name.startswith(incomplete)]


Source = Annotated[str, typer.Argument(help="Folder or Hub repository of a saved model.", show_default=False)]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the source repository.")]
RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A recipe's file or folder, or a name of fusible list.",
        autocompletion=recipe_names,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Changes of the recipe, such as training.learning_rate=1e-4."),
]
Images = Annotated[
    list[Path] | None,
    typer.Option("--image", help="With --check: compare on this image too; may be repeated.", exists=True),
]
DtypeName = Annotated[str | None, typer.Option(help="Such as bfloat16; cast after fusing.")]
Token = Annotated[str | None, typer.Option(help="Of the Hub; by default that of `hf auth login`.", show_default=False)]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run Python files of the source.")]
Tolerance = Annotated[float, typer.Option(help="For --check: largest difference / largest output.")]
PushRevision = Annotated[str | None, typer.Option(help="Branch to push to; made if missing.")]
Private = Annotated[bool, typer.Option("--private", help="If the repository is made, make it private.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything and say what would be done; do nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def show(values: Any, json: bool, table: "Table | None" = None) -> None:
    """Prints values as JSON, or else as a table: the given one, or one of names and values."""
    if json:
        typer.echo(json_module.dumps(values, indent=2, default=str))
        return
    from rich.console import Console
    from rich.table import Table

    if table is None:
        table = Table(show_header=False)
        for name, value in values.items():
            table.add_row(
                name, json_module.dumps(value, default=str) if isinstance(value, dict | list) else str(value)
            )
    Console().print(table)


def forms_table(
    title: str, rows: Mapping[str, tuple[Sequence[float], str]], differences: Mapping[str, str] | None = None
) -> "Table":
    """
    Both forms side by side.

    Args:
        title: of the table.
        rows: by name, the numbers of the training form and the fused one, and how they are written, such as `",.0f"`.
        differences: by name, what was found by comparing the two.
    """
    from rich.table import Table

    table = Table("", "training form", "fused", "ratio", title=title)
    for name, ((before, after), form) in rows.items():
        table.add_row(name, format(before, form), format(after, form), f"{after / before:.2f}")
    for name, text in (differences or {}).items():
        table.add_row(name, "", text, "")
    return table


def compare_outputs(
    training_form: "FusiblePreTrainedModel",
    fused_form: "FusiblePreTrainedModel",
    processor: Any | None,
    images: Sequence[Path],
) -> dict[str, float]:
    """
    `max_difference` and `max_output` of both forms on random inputs and, if there are any, on images.

    Raises:
        ValueError: if there are images but no image processor, or all outputs are zero.
    """
    from PIL import Image
    from transformers.utils import IMAGE_PROCESSOR_NAME

    from ..data.images.color_modes import to_rgb
    from ..hub.form_facts import compare_forms

    batches = []
    if images:
        if processor is None:
            raise ValueError(f"Images need an image processor, but the model's folder has no {IMAGE_PROCESSOR_NAME}.")
        pictures = [to_rgb(Image.open(file)) for file in images]
        batches.append(processor(pictures, return_tensors="pt"))
    return compare_forms(training_form, fused_form, batches)


@contextlib.contextmanager
def errors_as_messages() -> Iterator[None]:
    """Ends a command with the message of an expected error, without a traceback."""
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        typer.secho(f"Error: {error}", fg="red", err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        typer.echo("Interrupted; no model folder is half-written.", err=True)
        # 128 + SIGINT, as shells have it
        raise typer.Exit(130) from None


__all__ = [
    "DryRun",
    "DtypeName",
    "Images",
    "Json",
    "Overrides",
    "Private",
    "PushRevision",
    "RecipeName",
    "Revision",
    "Source",
    "Token",
    "Tolerance",
    "TrustRemoteCode",
    "compare_outputs",
    "errors_as_messages",
    "forms_table",
    "recipe_names",
    "show",
]
