"""The command `fusible convert`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._common import (
    DtypeName,
    Json,
    Private,
    PushRevision,
    Revision,
    Token,
    Tolerance,
    TrustRemoteCode,
    show,
)


if TYPE_CHECKING:
    from rich.table import Table


def convert(
    source: Annotated[str, typer.Argument(help="Folder or Hub repository of a dense model.", show_default=False)],
    destination: Annotated[Path, typer.Argument(help="Folder for the inference form.", show_default=False)],
    data: Annotated[
        str,
        typer.Option(
            help="Folder of images or videos, file with a text per line, or data set of the Hub; no labels needed."
        ),
    ],
    column: Annotated[
        str | None, typer.Option(help="Of a data set with several columns of texts or of images.")
    ] = None,
    idle_ratio: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of hidden channels without activation; 0.5 by default.")
    ] = None,
    speedup: Annotated[
        float | None, typer.Option(help="Instead: dense multiply-adds over fused; each block gets a share of its own.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Rows that the fit reads.")] = 512,
    distill: Annotated[
        int | None, typer.Option(min=1, metavar="STEPS", help="Then train so long towards the dense model.")
    ] = None,
    min_agreement: Annotated[
        float | None, typer.Option(help="Exit 1 and write nothing if fewer predictions, or less cosine, stay.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Compare both forms of the result on the data; exit 1 if they differ.")
    ] = False,
    tolerance: Tolerance = 1e-4,
    plot: Annotated[
        Path | None,
        typer.Option(help="File for a picture of error against idle ratio, block by block; takes another pass."),
    ] = None,
    ffn_norm: Annotated[str | None, typer.Option(help="layer (exact) or batch (faster); for image models.")] = None,
    device: Annotated[str | None, typer.Option(help="Such as cuda; the CPU by default.")] = None,
    dtype: DtypeName = None,
    seed: Annotated[int, typer.Option(help="Of the choice of rows and tokens.")] = 0,
    push_to_hub: Annotated[str | None, typer.Option(metavar="USER/NAME", help="Also push it there.")] = None,
    revision: Revision = None,
    push_revision: PushRevision = None,
    private: Private = False,
    token: Token = None,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """
    Make a dense model of transformers faster, on some inputs without labels, and say what it costs.

    Examples:

        fusible convert my-vit my-vit-fast --data photos --idle-ratio 0.75

        fusible convert sentence-transformers/all-MiniLM-L6-v2 minilm-fast --data sentences.txt --speedup 1.5
    """
    from ..converting import convert_and_publish

    if idle_ratio is not None and speedup is not None:
        raise ValueError("Give --idle-ratio or --speedup, not both.")
    options: dict[str, Any] = {"idle_ratio": 0.5 if idle_ratio is None else idle_ratio}
    if speedup is not None:
        options = {"idle_ratio": "auto", "speedup": speedup}
    if ffn_norm is not None:
        options["ffn_norm"] = ffn_norm
    facts = convert_and_publish(
        source,
        destination,
        data,
        options,
        column=column,
        samples=samples,
        distill_steps=distill,
        min_agreement=min_agreement,
        device=device,
        dtype=dtype,
        tolerance=tolerance if check else None,
        plot=plot,
        seed=seed,
        repo_id=push_to_hub,
        revision=revision,
        push_revision=push_revision,
        private=private or None,
        token=token,
        trust_remote_code=trust_remote_code,
    )
    show(facts, json, conversion_table(facts))


def conversion_table(facts: Mapping[str, Any]) -> "Table":
    """A conversion for the terminal."""
    from rich.table import Table

    table = Table("", "dense", "fused", "ratio", title=f"{facts['source']}, {facts['options']}")
    names = {"parameters": ",", "macs": ",", "megabytes": ",.1f", "latency_ms": ",.1f"}
    for name, form in names.items():
        before, after = facts["dense"][name], facts["fused"][name]
        table.add_row(name, format(before, form), format(after, form), f"{after / before:.2f}")
    for name, value in facts["agreement"].items():
        table.add_row(f"{name} ({facts['test_rows']} rows)", "", f"{value:.4f}", "")
    for name, value in facts.get("distillation", {}).get("agreement_before", {}).items():
        table.add_row(f"{name} before distillation", "", f"{value:.4f}", "")
    for number, error in enumerate(facts["block_errors"]):
        table.add_row(f"error of block {number}", "", f"{error:.4f}", "")
    return table


__all__ = ["convert"]
