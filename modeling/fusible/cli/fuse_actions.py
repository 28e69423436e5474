"""Work of the commands `fusible fuse` and `fusible inspect`."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image
from rich.table import Table
from transformers.utils import IMAGE_PROCESSOR_NAME, logging

from ..core.modeling import FusiblePreTrainedModel
from ..hub.form_facts import form_facts, max_difference
from ..hub.methods import METHODS
from ..saved_models import find_dtype, load, load_processor, publish


logger = logging.get_logger(__name__)


def difference(
    training_form: FusiblePreTrainedModel,
    fused_form: FusiblePreTrainedModel,
    processor: Any | None,
    images: Sequence[Path],
) -> tuple[float, float]:
    """
    `max_difference` on random inputs and on images.

    Raises:
        ValueError: if there are images but no image processor.
    """
    if not images:
        return max_difference(training_form, fused_form)
    if processor is None:
        raise ValueError(f"Images need an image processor, but the model's folder has no {IMAGE_PROCESSOR_NAME}.")
    pictures = [Image.open(file).convert("RGB") for file in images]
    results = [
        max_difference(training_form, fused_form),
        max_difference(training_form, fused_form, processor(pictures, return_tensors="pt")),
    ]
    return max(results, key=lambda result: result[0] / result[1])


def fuse_and_publish(
    source: str,
    destination: Path,
    *,
    repo_id: str | None = None,
    revision: str | None = None,
    push_revision: str | None = None,
    private: bool | None = None,
    dtype: str | None = None,
    tolerance: float | None = None,
    images: Sequence[Path] = (),
) -> dict[str, Any]:
    """
    Fuses a saved training form into a folder, with image processor and model card, and pushes that folder.

    Args:
        source: folder or Hub repository.
        destination: folder; files that are there already stay, except older weights and the card of an older fuse.
        repo_id: where to push, if anywhere.
        revision: of the source repository.
        push_revision: branch to push to.
        private: visibility of a new repository.
        dtype: of the fused weights; the source's by default.
        tolerance: how much the two forms may differ, relative to the largest output; `None` does not compare.
        images: compare on these too.

    Returns:
        `source`, `destination`, `repo_id` and, if the forms were compared, `max_difference` and `max_output`.

    Raises:
        ValueError: if the source is fused or no model of fusible's, if the forms differ, or if the dtype is unknown.
        OSError: if the source is not there, or the folder or the push cannot be completed.
    """
    cast_to = None if dtype is None else find_dtype(dtype)
    model, processor = load(source, revision), load_processor(source, revision)
    fused = model.fuse()
    facts: dict[str, Any] = {"source": source, "destination": str(destination), "repo_id": repo_id}
    if tolerance is not None:
        delta, scale = difference(model, fused, processor, images)
        if not delta <= tolerance * scale:  # also refuses NaN
            raise ValueError(
                f"The forms differ by {delta:.1e} where outputs reach {scale:.1e}; the tolerance is {tolerance:.0e} "
                "of that. Nothing was written. Is the model in half precision, or are its weights not finite?"
            )
        facts |= {"max_difference": delta, "max_output": scale}
        logger.warning(f"Both forms agree: they differ by {delta:.1e} where outputs reach {scale:.1e}.")
    if cast_to is not None:
        fused.to(cast_to)
    publish(
        fused,
        destination,
        processor,
        model,
        measure=cast_to is None,
        repo_id=repo_id,
        revision=push_revision,
        private=private,
    )
    return facts


def describe(source: str, revision: str | None, check: bool, images: Sequence[Path] = ()) -> dict[str, Any]:
    """
    What a saved model is.

    Args:
        source: folder or Hub repository.
        revision: of the repository.
        check: also measure the difference of the forms; needs the training form.
        images: compare on these too.

    Raises:
        ValueError: if it is not one of fusible's, or `check` is asked of a fused model.
        OSError: if it is not there.
    """
    model = load(source, revision)
    description: dict[str, Any] = {
        "source": source,
        "method": METHODS[model.config.model_type].name,
        "class": type(model).__name__,
        "form": "fused" if model.config.fused else "training",
        "dtype": str(model.dtype).removeprefix("torch."),
        "training": asdict(form_facts(model, fused=False)),
        "fused": asdict(form_facts(model, fused=True)),
    }
    if check:
        delta, scale = difference(model, model.fuse(), load_processor(source, revision), images)
        description |= {"max_difference": delta, "max_output": scale}
    return description


def description_table(description: dict[str, Any]) -> Table:
    """A description for the terminal."""
    title = "{method}: {class}, {form} form, {dtype}".format(**description)
    table = Table("", "training form", "inference form", "ratio", title=title)
    names = {"parameters": "parameters", "macs": "multiply-adds per input", "num_bytes": "weights, bytes"}
    for key, name in names.items():
        before, after = description["training"][key], description["fused"][key]
        table.add_row(name, f"{before:,}", f"{after:,}", f"{after / before:.2f}")
    if "max_difference" in description:
        table.add_row("max |Δ| of outputs", "", f"{description['max_difference']:.1e}", "")
    return table


__all__ = ["describe", "description_table", "difference", "fuse_and_publish"]
