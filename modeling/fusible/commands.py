"""What the commands `fusible fuse` and `fusible inspect` do."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from rich.table import Table
from transformers import AutoConfig, AutoImageProcessor, PreTrainedModel
from transformers.utils import cached_file, logging

import fusible

from .benchmark import form_facts, max_difference
from .fusion import FusiblePreTrainedModel
from .hub import write_card
from .methods import METHODS
from .publishing import push_folder
from .saving import save_model


logger = logging.get_logger(__name__)
PROCESSOR_CONFIG = "preprocessor_config.json"


def load(source: str, revision: str | None, plain: bool = False) -> Any:
    """
    A saved model in its own form and class.

    Args:
        source: folder or Hub repository.
        revision: of the repository.
        plain: also take models without two forms, such as what EWA's are fused to.

    Raises:
        ValueError: if it is not one of fusible's, nor a plain one that may be taken.
        OSError: if it is not there.
    """
    config = AutoConfig.from_pretrained(source, revision=revision or "main")
    if not plain and config.model_type not in METHODS:
        raise ValueError(f"{source} is a {config.model_type!r} model; fusible has {', '.join(sorted(METHODS))}.")
    name = (config.architectures or ["none"])[0]
    model_class = getattr(fusible, name, None) or (getattr(transformers, name, None) if plain else None)
    if model_class is None:
        raise ValueError(f"{source} names the class {name}, which is unknown.")
    return model_class.from_pretrained(source, revision=revision or "main")


def load_processor(source: str, revision: str | None) -> Any | None:
    """The image processor saved with a model, if there is one."""
    file = cached_file(
        source, PROCESSOR_CONFIG, revision=revision or "main", _raise_exceptions_for_missing_entries=False
    )
    return None if file is None else AutoImageProcessor.from_pretrained(source, revision=revision or "main")


def find_dtype(name: str) -> torch.dtype:
    """
    A floating-point dtype by its name.

    Raises:
        ValueError: if there is none.
    """
    dtype = getattr(torch, name, None)
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"{name!r} is no dtype of torch; take float32, bfloat16 or float16.")
    return dtype


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
        raise ValueError(f"Images need an image processor, but the model's folder has no {PROCESSOR_CONFIG}.")
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


def publish(
    model: PreTrainedModel,
    destination: Path,
    processor: Any | None = None,
    source: FusiblePreTrainedModel | None = None,
    *,
    measure: bool = True,
    repo_id: str | None = None,
    revision: str | None = None,
    private: bool | None = None,
    card_data: dict[str, Any] | None = None,
) -> None:
    """
    Saves a model into a folder, with processor and model card, and pushes that folder.

    Args:
        model: one of ours in either form, or a plain one that one was fused to.
        destination: folder; files that are there already stay, except older weights and the card.
        processor: image processor or tokenizer, if there is one.
        source: what a fused model was made from.
        measure: also measure the difference of the two for the card.
        repo_id: where to push, if anywhere.
        revision: branch to push to.
        private: visibility of a new repository.
        card_data: more metadata for the card.

    Raises:
        OSError: if the folder or the push cannot be completed.
    """
    names = save_model(model, destination)
    if processor is not None:
        names += [Path(file).name for file in processor.save_pretrained(destination)]

    def card(name: str) -> None:
        write_card(destination, model, name, source, card_data, measure=measure)

    if repo_id is None:
        card(destination.name)
    else:
        push_folder(destination, names, repo_id, card, revision=revision, private=private)


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


__all__ = [
    "describe",
    "description_table",
    "difference",
    "find_dtype",
    "fuse_and_publish",
    "load",
    "load_processor",
    "publish",
]
