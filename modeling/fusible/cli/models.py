"""The commands `fusible bench`, `push` and `export`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .common import DryRun, Json, Revision, Source, clear_errors, recipe_names, show


class ExportFormat(StrEnum):
    onnx = "onnx"
    torch = "torch"


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
    dtype: Annotated[str | None, typer.Option(help="Such as bfloat16; cast after fusing.")] = None,
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
    from .model_actions import bench_table, time_forms

    with clear_errors():
        rows = time_forms(source, batch_size or [1, 8], revision, dtype, device, compiled, repeats)
        show(rows, json, bench_table(source, rows))


def push(
    folder: Annotated[Path, typer.Argument(help="Folder of a saved model, in either form.", show_default=False)],
    repo_id: Annotated[str, typer.Argument(metavar="USER/NAME", help="Made if missing.", show_default=False)],
    revision: Annotated[str | None, typer.Option(help="Branch to push to; made if missing.")] = None,
    private: Annotated[bool, typer.Option("--private", help="If the repository is made, make it private.")] = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """
    Push the folder of a saved model as one commit, with its model card.

    Examples:

        fusible push out/digits-fused user/digits-fused --dry-run

        fusible push out/digits user/digits --private
    """
    from .model_actions import push_saved

    with clear_errors():
        show(push_saved(folder, repo_id, revision=revision, private=private or None, dry_run=dry_run), json)


def export(
    source: Source,
    destination: Annotated[Path, typer.Argument(help="Folder for the program.", show_default=False)],
    kind: Annotated[ExportFormat, typer.Option("--format", help="ONNX, or a program of torch.export.")] = (
        ExportFormat.onnx
    ),
    revision: Revision = None,
    tolerance: Annotated[float, typer.Option(help="Largest difference / largest output; exit 1 beyond it.")] = 1e-4,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """
    Export the inference form for other runtimes, for any batch size, and compare what it computes.

    Examples:

        fusible export out/digits out/digits-onnx

        fusible export user/my-model my-model-program --format torch
    """
    from .model_actions import export_saved

    with clear_errors():
        show(export_saved(source, destination, kind.value, revision, tolerance, dry_run), json)


__all__ = ["bench", "export", "push"]
