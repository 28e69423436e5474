"""Inputs without labels, for models that are converted or compared: from a folder, a file or the Hub."""

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from PIL import Image

from .files import visible_files
from .images.color_modes import to_rgb


def sample_rows(source: str, kind: str, count: int, seed: int = 0) -> list[Any]:
    """
    Some rows of a source, chosen at random.

    Args:
        source: a folder of images, in folders of classes or not; a text file with a text in each line; or the name of
            a data set of the Hub, whose `train` split is read.
        kind: `"pixel_values"` for images, `"input_ids"` for texts.
        count: how many; fewer if there are no more.
        seed: of the choice.

    Returns:
        Texts, paths of images, or images.

    Raises:
        ValueError: if there are no such rows.
        OSError: if the source is not there.
    """
    generator = random.Random(seed)
    path = Path(source)
    if path.is_dir() and kind == "pixel_values":
        endings = {ending for ending, name in Image.registered_extensions().items() if name in Image.OPEN}
        rows: Sequence[Any] = [file for file in visible_files(path, "**/*") if file.suffix.lower() in endings]
    elif path.is_file() and kind == "input_ids":
        rows = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    elif path.exists():
        wanted = "a folder of images" if kind == "pixel_values" else "a text file with a text in each line"
        raise ValueError(f"{source} is a {'folder' if path.is_dir() else 'file'}; this model takes {wanted}.")
    else:
        return _rows_of_hub(source, kind, count, generator)
    if not rows:
        raise ValueError(f"{source} has no {'images' if kind == 'pixel_values' else 'texts'}.")
    return generator.sample(rows, min(count, len(rows)))


def _rows_of_hub(source: str, kind: str, count: int, generator: random.Random) -> list[Any]:
    found = datasets.load_dataset(source, split="train")
    is_kind: Callable[[Any], bool] = lambda feature: (  # noqa: E731
        isinstance(feature, datasets.Image) if kind == "pixel_values" else getattr(feature, "dtype", "") == "string"
    )
    columns = [name for name, feature in found.features.items() if is_kind(feature)]
    if len(columns) != 1:
        raise ValueError(
            f"{source} has the columns {', '.join(found.features)}; one of them must have "
            f"{'images' if kind == 'pixel_values' else 'texts'}, and {len(columns)} do."
        )
    numbers = generator.sample(range(len(found)), min(count, len(found)))
    return [found[number][columns[0]] for number in numbers]


def input_batches(
    rows: Sequence[Any], processor: Any, batch_size: int = 32, max_length: int | None = None
) -> Iterator[dict[str, torch.Tensor]]:
    """
    What a processor makes of rows, in batches.

    Args:
        rows: of `sample_rows`.
        processor: an image processor or a tokenizer.
        batch_size: of the batches.
        max_length: of texts, in tokens; by default the tokenizer's.

    Raises:
        ValueError: if an image cannot be read; it is named.
    """
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        if isinstance(part[0], str):
            # no limit of its own is a huge number
            length = max_length or min(processor.model_max_length, 512)
            yield dict(processor(list(part), padding=True, truncation=True, max_length=length, return_tensors="pt"))
        else:
            yield dict(processor([_picture(row) for row in part], return_tensors="pt"))


def example_of(row: Any, processor: Any) -> dict[str, torch.Tensor]:
    """What a processor makes of one row of `sample_rows`, without a batch dimension."""
    return {name: values[0] for name, values in next(input_batches([row], processor)).items()}


def _picture(row: Any) -> Image.Image:
    if not isinstance(row, Path):
        return to_rgb(row)
    try:
        with Image.open(row) as image:
            return to_rgb(image)
    except OSError as error:
        raise ValueError(f"{row} cannot be read as an image: {error}") from error


__all__ = ["example_of", "input_batches", "sample_rows"]
