"""The command `fusible inspect`."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._common import Images, Json, Revision, Source, compare_outputs, forms_table, show


if TYPE_CHECKING:
    from rich.table import Table


def inspect(
    source: Source,
    revision: Revision = None,
    check: Annotated[bool, typer.Option("--check", help="Also compare both forms' outputs.")] = False,
    image: Images = None,
    linearity: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="What converting the source, a dense model, would cost, block by block; DATA as in fusible convert.",
        ),
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="With --linearity: rows to read; 512 by default.")] = None,
    seed: Annotated[int | None, typer.Option(help="With --linearity: of the choice of rows and tokens.")] = None,
    json: Json = False,
) -> None:
    """
    Say what a saved model is: method, form, size and cost of both forms, and, on request, their difference.

    With --linearity: how much of a dense model's FFNs is linear, and what idle channels would cost.

    Examples:

        fusible inspect out/digits --check

        fusible inspect user/my-model --json

        fusible inspect my-vit --linearity photos
    """
    if linearity is not None:
        if check or image:
            raise ValueError("--check and --image compare both forms of a model; a dense model has one.")
        found = linearity_of(source, revision, linearity, samples or 512, seed or 0)
        show(found, json, linearity_table(found))
        return
    if samples is not None or seed is not None:
        raise ValueError("--samples and --seed are about the DATA of --linearity, which is not given.")
    description = describe(source, revision, check, image or [])
    show(description, json, description_table(description))


def describe(source: str, revision: str | None, check: bool, images: Sequence[Path] = ()) -> dict[str, Any]:
    """
    What a saved model is.

    Args:
        source: folder or Hub repository.
        revision: of the repository.
        check: also measure the difference of the forms; needs the training form.
        images: compare on these too.

    Raises:
        ValueError: if it is not one of fusible's, `check` is asked of a fused model, or outputs are not finite.
        OSError: if it is not there.
    """
    from ..hub.form_facts import form_facts
    from ..hub.methods import METHODS
    from ..saved_models import load, load_processor

    model = load(source, revision)
    description: dict[str, Any] = {
        "source": source,
        "method": METHODS[model.config.model_type].name,
        "class": type(model).__name__,
        "form": "fused" if model.config.fused else "training",
        "dtype": str(model.dtype).removeprefix("torch."),
        # both from the configuration, so that a fused model tells of its training form as well
        "training": asdict(form_facts(model, fused=False)),
        "fused": asdict(form_facts(model, fused=True)),
    }
    if check:
        processor = load_processor(source, revision, "pixel_values") if images else None
        compared = compare_outputs(model, model.fuse(share=True), processor, images)
        if not math.isfinite(compared["max_difference"]):
            raise ValueError(f"Outputs of {source} are not finite, so that its forms do not compare. Are its weights?")
        description |= compared
    return description


def linearity_of(source: str, revision: str | None, data: str, samples: int, seed: int) -> dict[str, Any]:
    """
    What converting a dense model would cost; nothing is written.

    Args:
        source: folder or Hub repository of a dense model.
        revision: of the repository.
        data: see `data.inputs.sample_rows`.
        samples: how many rows of it.
        seed: of the choice of rows and tokens.

    Returns:
        `source`, `data`, `samples` and what `measure_linearity` returns.

    Raises:
        ValueError: if the model or the data cannot be converted.
        OSError: if the source or the data are not there.
    """
    from ..converting import load_dense_for, needed_processor
    from ..data.inputs import input_batches, sample_rows
    from ..models.repavit.linearity import IDLE_RATIOS, measure_linearity

    model_class, dense = load_dense_for(source, revision)
    processor = needed_processor(source, revision, dense)
    rows = sample_rows(data, dense.main_input_name, samples, seed)
    found = measure_linearity(dense, model_class, input_batches(rows, processor), IDLE_RATIOS, seed)
    return {"source": source, "data": data, "samples": len(rows), **found}


def linearity_table(found: dict[str, Any]) -> "Table":
    """What `linearity_of` found, for the terminal."""
    from rich.table import Table

    headers = [f"error at {ratio:g}" for ratio in found["errors"]]
    table = Table("block", "linear", *headers, title=f"{found['source']}, by idle ratio")
    for number, share in enumerate(found["linear"]):
        table.add_row(str(number), f"{share:.1%}", *(f"{errors[number]:.4f}" for errors in found["errors"].values()))
    table.add_section()
    table.add_row("speedup", "", *(f"{speedup:.2f}" for speedup in found["speedups"].values()))
    return table


def description_table(description: dict[str, Any]) -> "Table":
    """A description for the terminal."""
    names = {"parameters": "parameters", "macs": "multiply-adds per input", "num_bytes": "weights, bytes"}
    rows = {name: ((description["training"][key], description["fused"][key]), ",") for key, name in names.items()}
    differences = {}
    if "max_difference" in description:
        differences["max |Δ| of outputs"] = f"{description['max_difference']:.1e}"
    return forms_table("{method}: {class}, {form} form, {dtype}".format(**description), rows, differences)


__all__ = ["inspect"]
