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
    json: Json = False,
) -> None:
    """
    Say what a saved model is: method, form, size and cost of both forms, and, on request, their difference.

    Examples:

        fusible inspect out/digits --check

        fusible inspect user/my-model --json
    """
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


def description_table(description: dict[str, Any]) -> "Table":
    """A description for the terminal."""
    names = {"parameters": "parameters", "macs": "multiply-adds per input", "num_bytes": "weights, bytes"}
    rows = {name: ((description["training"][key], description["fused"][key]), ",") for key, name in names.items()}
    differences = {}
    if "max_difference" in description:
        differences["max |Δ| of outputs"] = f"{description['max_difference']:.1e}"
    return forms_table("{method}: {class}, {form} form, {dtype}".format(**description), rows, differences)


__all__ = ["inspect"]
