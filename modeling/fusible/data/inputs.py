"""Inputs without labels, for models that are converted or compared: from a folder, a file or the Hub."""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from transformers.utils import logging

from .files import visible_files
from .images.color_modes import to_rgb
from .videos.decoding import read_frames


logger = logging.get_logger(__name__)
VIDEO_ENDINGS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
SOUND_ENDINGS = (".aac", ".flac", ".m4a", ".mp3", ".ogg", ".opus", ".wav")
TABLE_ENDINGS = (".csv", ".json", ".jsonl", ".parquet")  # what `datasets` reads of a folder
FRAMES_PER_VIDEO = 8  # at most: frames of a video resemble each other
# by a model's main input: what is read for it
KINDS = {"pixel_values": "images", "input_ids": "texts"}


@dataclass(frozen=True)
class Frame:
    """A picture of a video, at a share of its length in [0, 1)."""

    video: Path
    place: float


def sample_rows(
    source: str, kind: str, count: int, seed: int = 0, column: str | None = None, token: str | None = None
) -> list[Any]:
    """
    Some rows of a source, chosen at random.

    Args:
        source: a folder of images, in folders of classes or not, or of videos, of which up to 8 frames each are taken;
            a text file with a text in each line; a folder of tables that `datasets` reads, such as Parquet files; or
            the name of a data set of the Hub. Of data sets the `train` split is read.
        kind: `"pixel_values"` for images, `"input_ids"` for texts.
        count: how many; fewer if there are no more.
        seed: of the choice.
        column: of a data set; by default the only one with images, or with texts.
        token: of the Hub.

    Returns:
        Texts, paths of images, images, or frames of videos.

    Raises:
        ValueError: if there are no such rows.
        OSError: if the source is not there.
    """
    generator = random.Random(seed)
    path = Path(source)
    if kind not in KINDS:
        raise ValueError(f"The model takes {kind}, which no data here have; convert it by from_dense in Python.")
    if path.is_dir():
        endings = Counter(file.suffix.lower() for file in visible_files(path, "**/*") if file.is_file())
        found = None if kind == "input_ids" else _images_or_frames(path, endings, count, generator)
        if found is not None:
            return found
        if not any(ending in endings for ending in TABLE_ENDINGS):
            raise ValueError(_what_is_there(path, kind, endings))
    elif path.exists():
        if kind != "input_ids" or path.suffix.lower() in (*VIDEO_ENDINGS, *SOUND_ENDINGS):
            wanted = (
                "a folder of images or videos" if kind == "pixel_values" else "a text file with a text in each line"
            )
            raise ValueError(f"{source} is a file; this model takes {wanted}, or a data set of the Hub.")
        texts = _lines(path)
        return generator.sample(texts, min(count, len(texts)))
    return _rows_of_data_set(source, kind, count, generator, column, token)


def _images_or_frames(
    folder: Path, endings: Counter[str], count: int, generator: random.Random
) -> list[Path] | list[Frame] | None:
    """What an image model takes of a folder, if there is anything."""
    known = {ending for ending, name in Image.registered_extensions().items() if name in Image.OPEN}
    # PIL opens one picture of such a file
    known -= {*VIDEO_ENDINGS, *SOUND_ENDINGS}
    files = visible_files(folder, "**/*")
    images = [file for file in files if file.suffix.lower() in known]
    videos = [file for file in files if file.suffix.lower() in VIDEO_ENDINGS]
    if images:
        if videos:
            logger.warning(f"{folder} has {len(videos)} videos beside {len(images)} images; the images are read.")
        return generator.sample(images, min(count, len(images)))
    if not videos:
        return None
    generator.shuffle(videos)
    each = min(FRAMES_PER_VIDEO, -(-count // len(videos)))
    # one after the other, so that rows of the fit and others share a video at most
    frames = [Frame(video, (part + generator.random()) / each) for video in videos for part in range(each)]
    return frames[:count]


def _what_is_there(folder: Path, kind: str, endings: Counter[str]) -> str:
    """The message for a folder that a model takes nothing from."""
    if kind == "input_ids":
        wanted = "takes a text file with a text in each line, or a data set of the Hub"
    else:
        wanted = "takes a folder of images or videos, or a data set of the Hub"
    sounds = sum(endings[ending] for ending in SOUND_ENDINGS)
    if sounds:
        return f"{folder} has sounds ({sounds} files), which no model that can be converted takes; this one {wanted}."
    found = ", ".join(f"{number} {ending or 'without an ending'}" for ending, number in endings.most_common(5))
    return f"{folder} has no {KINDS[kind]}, but {found or 'no files'}; this model {wanted}."


def _lines(file: Path) -> list[str]:
    try:
        # with or without a byte order mark; only newlines end a text
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is no text file in UTF-8 (byte {error.start} is {error.object[error.start]:#04x}); convert it to "
            "UTF-8, with a text in each line."
        ) from error
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise ValueError(f"{file} has no texts.")
    return texts


def _rows_of_data_set(
    source: str, kind: str, count: int, generator: random.Random, column: str | None, token: str | None
) -> list[Any]:
    try:
        found = datasets.load_dataset(source, split="train", token=token)
    except (OSError, ValueError) as error:
        message = f"{source} is no file or folder with {KINDS[kind]}, nor a data set that can be read: {error}"
        raise (OSError if isinstance(error, OSError) else ValueError)(message) from error
    is_kind: Callable[[Any], bool] = lambda feature: (  # noqa: E731
        isinstance(feature, datasets.Image) if kind == "pixel_values" else getattr(feature, "dtype", "") == "string"
    )
    columns = [name for name, feature in found.features.items() if is_kind(feature)]
    names = ", ".join(found.features)
    if column is not None and column not in columns:
        raise ValueError(f"{source} has no column {column!r} of {KINDS[kind]}; it has the columns {names}.")
    if column is None and len(columns) != 1:
        several = f"{len(columns)} columns of {KINDS[kind]} ({', '.join(columns)}); choose one with --column"
        none = f"no column of {KINDS[kind]}; it has the columns {names}"
        raise ValueError(f"{source} has {several if columns else none}.")
    values = found.select_columns([column or columns[0]])
    rows: list[Any] = []
    for number in generator.sample(range(len(found)), len(found)):
        if len(rows) == count:
            break
        try:
            (value,) = values[number].values()
        except (OSError, SyntaxError, ValueError) as error:  # Pillow's ways to say that an image is broken
            raise ValueError(f"Row {number} of {source} cannot be read: {error}") from error
        if value is not None and (not isinstance(value, str) or value.strip()):
            rows.append(value)
    if not rows:
        raise ValueError(f"{source} has no {KINDS[kind]} in the column {column or columns[0]!r}.")
    return rows


def input_batches(rows: Sequence[Any], processor: Any, batch_size: int = 32) -> Iterator[dict[str, torch.Tensor]]:
    """
    What a processor makes of rows, in batches.

    Args:
        rows: of `sample_rows`.
        processor: an image processor or a tokenizer.
        batch_size: of the batches.

    Raises:
        ValueError: if an image or a video cannot be read; it is named.
        ImportError: for videos, if PyAV is not installed.
    """
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        if isinstance(part[0], str):
            # no limit of its own is a huge number
            length = min(processor.model_max_length, 512)
            yield dict(processor(list(part), padding=True, truncation=True, max_length=length, return_tensors="pt"))
        else:
            yield dict(processor(list(_pictures(part)), return_tensors="pt"))


def _pictures(rows: Sequence[Any]) -> Iterator[Image.Image]:
    # frames of a video together, as it is decoded up to them
    for video, group in groupby(rows, lambda row: row.video if isinstance(row, Frame) else None):
        if video is None:
            yield from map(_picture, group)
            continue
        places = np.array([frame.place for frame in group])
        yield from map(Image.fromarray, read_frames(video, partial(_numbers, places)))


def _numbers(places: np.ndarray, total: int) -> np.ndarray:
    """Of frames at shares of a video's length."""
    return (places * total).astype(np.int64)


def example_of(row: Any, processor: Any) -> dict[str, torch.Tensor]:
    """What a processor makes of one row of `sample_rows`, without a batch dimension."""
    return {name: values[0] for name, values in next(input_batches([row], processor)).items()}


def _picture(row: Any) -> Image.Image:
    if not isinstance(row, Path):
        return to_rgb(row)
    try:
        with Image.open(row) as image:
            return to_rgb(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{row} cannot be read as an image: {error}") from error


__all__ = ["Frame", "example_of", "input_batches", "sample_rows"]
