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
    show(export_saved(source, destination, kind, revision, tolerance, dry_run), json)


def export_saved(
    source: str,
    destination: Path,
    kind: Literal["onnx", "torch"],
    revision: str | None,
    tolerance: float,
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
        dry_run: only load the model and say what would be exported.

    Raises:
        ValueError: as `export_fused`, or if the model is none of fusible's.
        ImportError: if a package for the format is missing.
    """
    from ..export import check_format, export_fused, input_shapes
    from ..saved_models import load

    # before the model is loaded, which can take minutes
    check_format(kind)
    model = load(source, revision)
    if dry_run:
        return {"format": kind, "folder": str(destination), "inputs": input_shapes(model)}
    return export_fused(model, destination, kind, tolerance)


__all__ = ["export"]
