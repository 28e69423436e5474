"""
Long sequences to classify: texts as bytes, pairs of documents, expressions, and images pixel by pixel.

Tokens are padded by `pad_tokens`, token 0 being the padding. Images stay images `[channels, height, width]`:
`S4ForImageClassification` reads them row by row.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import ByT5Tokenizer

from ..dataset import load_split
from ..images.color_modes import to_rgb
from ..images.transforms import normalize
from ..text.tables import read_tsv, whole_number
from .listops import FILES, listops_tokenizer


AAN_COLUMNS = ["label", "id1", "id2", "text1", "text2"]
AAN_FILES = {"train": "new_aan_pairs.train.tsv", "validation": "new_aan_pairs.eval.tsv"}
AAN_FILES["test"] = "new_aan_pairs.test.tsv"
# of all pixels, as the authors have it: gray ones, and each channel
CIFAR_GRAY = ([122.6 / 255], [61.0 / 255])
CIFAR_COLOR = ([0.4914, 0.4822, 0.4465], [0.247, 0.243, 0.261])


def byte_tokenizer() -> ByT5Tokenizer:
    """256 bytes after padding (0), end (1) and unknown (2), as ByT5 numbers them."""
    return ByT5Tokenizer(extra_ids=0)


def tokenize(
    rows: datasets.Dataset, tokenizer: Any, max_length: int, texts: str | Sequence[str], label: str
) -> datasets.Dataset:
    """
    Rows with `input_ids` of up to `max_length` tokens, or a list of two of them, and `labels`.

    Args:
        rows: with columns of texts and labels.
        tokenizer: one of transformers'.
        max_length: texts are cut off there.
        texts: the column, or the two columns of pairs.
        label: the column of labels, whole numbers of any type.

    Raises:
        ValueError: for a label that is no whole number.
    """

    def convert(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        # pad_tokens makes the mask of a batch; stored masks would only double the cache
        options = {"truncation": True, "max_length": max_length, "return_attention_mask": False}
        ids = [
            tokenizer(list(batch[column]), **options)["input_ids"]
            for column in ([texts] if isinstance(texts, str) else texts)
        ]
        return {
            # two lists of texts become a list of pairs
            "input_ids": ids[0] if isinstance(texts, str) else [list(pair) for pair in zip(*ids, strict=True)],
            "labels": [whole_number(value) for value in batch[label]],
        }

    return rows.map(convert, batched=True, remove_columns=rows.column_names)


def pad_tokens(rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """
    Batches of rows with `input_ids` of different lengths, or of pairs, and `labels`.

    Returns:
        `input_ids` `[batch, length]` or `[batch, 2, length]` (int64), 0 at the end of shorter ones, `attention_mask`
        of that shape, and `labels` `[batch]`.
    """
    # a list of tokens has numbers in it, a pair has lists
    pairs = np.ndim(rows[0]["input_ids"][0]) > 0
    # texts of pairs one after another: [2 * batch] of them, which unflatten pairs up again
    texts = [torch.as_tensor(ids) for row in rows for ids in (row["input_ids"] if pairs else [row["input_ids"]])]
    batch = {
        "input_ids": pad_sequence(texts, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(ids) for ids in texts], batch_first=True),
    }
    if pairs:
        batch = {name: tensor.unflatten(0, (-1, 2)) for name, tensor in batch.items()}
    return {**batch, "labels": torch.tensor([int(row["labels"]) for row in rows])}


def load_listops(
    folder: str | os.PathLike, split: str, max_length: int = 2048, tokenizer: Any = None
) -> datasets.Dataset:
    """ListOps from its files, see `listops.write_listops`; splits are `"train"`, `"validation"` and `"test"`."""
    rows = read_tsv(Path(folder, FILES[split]))
    return tokenize(rows, tokenizer or listops_tokenizer(), max_length, "Source", "Target")


def load_imdb(
    split: str, path: str = "stanfordnlp/imdb", max_length: int = 4096, tokenizer: Any = None
) -> datasets.Dataset:
    """Reviews as bytes by default, and whether they are good; `path` is a Hub repository or a folder like it."""
    return tokenize(load_split(path, split), tokenizer or byte_tokenizer(), max_length, "text", "label")


def load_aan(folder: str | os.PathLike, split: str, max_length: int = 4000, tokenizer: Any = None) -> datasets.Dataset:
    """
    Pairs of papers as bytes by default, and whether one cites the other, from the files of the Long Range Arena.

    These are `new_aan_pairs.{train,eval,test}.tsv`, with label, two numbers and two texts in each line.
    """
    rows = read_tsv(Path(folder, AAN_FILES[split]), AAN_COLUMNS)
    return tokenize(rows, tokenizer or byte_tokenizer(), max_length, ["text1", "text2"], "label")


class _Pixels:
    """Transform of batches of images."""

    def __init__(self, gray: bool, mean: Sequence[float], std: Sequence[float], permutation: int | None) -> None:
        self.mode = "L" if gray else "RGB"
        self.mean = mean
        self.std = std
        self.permutation = permutation

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, Any]:
        result = dict(batch)
        # datasets also asks for single columns, such as the labels alone
        if "pixel_values" in batch:
            images = np.stack([np.asarray(to_rgb(image).convert(self.mode)) for image in batch["pixel_values"]])
            pixels = torch.from_numpy(images)
            # [batch, channels, height, width]
            pixels = pixels[:, None] if self.mode == "L" else pixels.movedim(-1, 1)
            if self.permutation is not None:
                # from the seed in every call, so that all batches, workers and splits have the same order
                order = np.random.default_rng(self.permutation).permutation(pixels[0, 0].numel())
                pixels = pixels.flatten(2)[:, :, torch.from_numpy(order)].reshape(pixels.shape)
            result["pixel_values"] = list(normalize(pixels, self.mean, self.std))
        return result


def load_pixels(
    path: str,
    split: str,
    *,
    image: str = "image",
    label: str = "label",
    gray: bool = True,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    permutation: int | None = None,
) -> datasets.Dataset:
    """
    Images of equal size with `pixel_values` `[channels, height, width]` (float32) and `labels`.

    Args:
        path: a Hub repository, or a folder with files that `datasets.load_dataset` reads.
        split: of it, also such as `"train[:90%]"`.
        image: the column of images.
        label: the column of labels.
        gray: one channel instead of three.
        mean: of each channel, of values between 0 and 1.
        std: likewise.
        permutation: seed of an order of the pixels that is the same for all images.
    """
    # with_transform works when rows are read, so that no float32 copy of the images is stored
    rows = load_split(path, split).select_columns([image, label])
    rows = rows.rename_columns({image: "pixel_values", label: "labels"})
    return rows.with_transform(_Pixels(gray, mean, std, permutation))


def pixel_tokens(batch: Mapping[str, list[Any]]) -> dict[str, list[torch.Tensor]]:
    """Images as rows of `load_pixel_tokens`."""
    pixels = torch.from_numpy(np.stack([np.asarray(to_rgb(image)) for image in batch["input_ids"]]))
    # [batch, height, width, 3] flattens to red, green, blue of each pixel; pad puts the first 0 in front
    ids = torch.nn.functional.pad(pixels.flatten(1).long(), (1, 0))
    return {"input_ids": list(ids), "labels": list(ids.clone())}


def load_pixel_tokens(path: str, split: str, *, image: str = "image") -> datasets.Dataset:
    """
    Images of equal size as tokens: red, green and blue of each pixel, row by row, after a first 0.

    Args:
        path: a Hub repository, or a folder with files that `datasets.load_dataset` reads.
        split: of it.
        image: the column of images.

    Returns:
        Rows with `input_ids` and `labels` `[3 * height * width + 1]` (int64), which are the same.
    """
    rows = load_split(path, split).select_columns([image]).rename_columns({image: "input_ids"})
    return rows.with_transform(pixel_tokens)


__all__ = [
    "CIFAR_COLOR",
    "CIFAR_GRAY",
    "byte_tokenizer",
    "load_aan",
    "load_imdb",
    "load_listops",
    "load_pixel_tokens",
    "load_pixels",
    "pad_tokens",
    "tokenize",
]
