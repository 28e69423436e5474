"""The command `fusible export`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ._common import DryRun, Json, Revision, Source, show


def export(
    source: Source,
    destination: Annotated[Path, typer.Argument(help="Folder for the program.", show_default=False)],
    kind: Annotated[
        Literal["onnx", "torch"], typer.Option("--format", help="ONNX, or a program of torch.export.")
    ] = "onnx",
    revision: Revision = None,
    int8: Annotated[bool, typer.Option("--int8", help="Linears of an ONNX program in int8.")] = False,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Largest difference / largest output; exit 1 beyond it.  [default: 1e-4, or 0.1 with --int8]",
            show_default=False,
        ),
    ] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """
    Export the inference form for other runtimes, for any batch size, and compare what it computes.

    Examples:

        fusible export out/digits out/digits-onnx

        fusible export out/digits out/digits-int8 --int8

        fusible export user/my-model my-model-program --format torch
    """
    show(export_saved(source, destination, kind, revision, tolerance, int8, dry_run), json)


def export_saved(
    source: str,
    destination: Path,
    kind: Literal["onnx", "torch"],
    revision: str | None,
    tolerance: float | None,
    int8: bool,
    dry_run: bool,
) -> dict[str, Any]:
    """
    `export_fused` of a saved model.

    Args:
        source: folder or Hub repository, of either form.
        destination: folder of the program.
        kind: its format.
        revision: of the repository.
        tolerance: see `export_fused`.
        int8: see `export_fused`.
        dry_run: only load the model and say what would be exported.

    Raises:
        ValueError: as `export_fused`, or if the model is none of fusible's.
        ImportError: if a package for the format is missing.
    """
    from ..export import check_format, export_fused, input_shapes
    from ..saved_models import load

    # before the model is loaded, which can take minutes
    check_format(kind, int8)
    model = load(source, revision)
    if dry_run:
        return {"format": kind, "int8": int8, "folder": str(destination), "inputs": input_shapes(model)}
    return export_fused(model, destination, kind, tolerance, int8)


__all__ = ["export"]
