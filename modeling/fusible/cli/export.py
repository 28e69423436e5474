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
    step: Annotated[
        bool, typer.Option("--step", help="Programs that read piece by piece: states in and out, for S4.")
    ] = False,
    chunk: Annotated[
        int | None,
        typer.Option(
            help="With --step: positions of the program for many at once.  [default: 64]", show_default=False
        ),
    ] = None,
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

        fusible export user/my-s4 my-s4-stream --step
    """
    if chunk is not None and not step:
        raise typer.BadParameter("it is for programs that read piece by piece; add --step.", param_hint="--chunk")
    pieces = (64 if chunk is None else chunk) if step else None
    show(export_saved(source, destination, kind, revision, tolerance, int8, pieces, dry_run), json)


def export_saved(
    source: str,
    destination: Path,
    kind: Literal["onnx", "torch"],
    revision: str | None,
    tolerance: float | None,
    int8: bool,
    chunk: int | None,
    dry_run: bool,
) -> dict[str, Any]:
    """
    `export_fused` of a saved model, or `export_stream`.

    Args:
        source: folder or Hub repository, of either form.
        destination: folder of the program.
        kind: its format.
        revision: of the repository.
        tolerance: see `export_fused`.
        int8: see `export_fused`.
        chunk: see `export_stream`, which exports if it is given.
        dry_run: only load the model and say what would be exported.

    Raises:
        ValueError: as these, or if the model is none of fusible's.
        ImportError: if a package for the format is missing.
    """
    from ..export import check_format, export_fused, input_shapes
    from ..saved_models import load
    from ..stream_export import check_streams, export_stream, stream_shapes

    # before the model is loaded, which can take minutes
    check_format(kind, int8)
    if int8 and chunk is not None:
        raise ValueError("--int8 is for whole sequences; leave it out with --step.")
    model = load(source, revision)
    if chunk is not None:
        check_streams(model)
        if dry_run:
            return {"format": kind, "folder": str(destination), "inputs": stream_shapes(model, chunk)}
        return export_stream(model, destination, kind, chunk, tolerance)
    if dry_run:
        return {"format": kind, "int8": int8, "folder": str(destination), "inputs": input_shapes(model)}
    return export_fused(model, destination, kind, tolerance, int8)


__all__ = ["export"]
