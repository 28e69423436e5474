"""Language as a stream of tokens, and series of numbers: blocks to predict, windows to forecast, arrays."""

import os
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import pandas
import torch
from torch.utils.data import StackDataset
from transformers import PreTrainedTokenizerBase

from ..text.tokenizers import frequent_words, word_tokenizer
from .long_range_arena import load_split


WIKITEXT_FILES = {"train": "wiki.train.tokens", "validation": "wiki.valid.tokens", "test": "wiki.test.tokens"}
# how many values each feature has, which S4ForTimeSeriesPrediction embeds; the last one between full hours only
CALENDAR = {"hour": 24, "day_of_week": 7, "day": 32, "month": 13, "quarter_of_hour": 4}
HOURLY = list(CALENDAR.values())[:4]


def load_wikitext(
    split: str, path: str = "Salesforce/wikitext", name: str | None = "wikitext-103-v1"
) -> datasets.Dataset:
    """Lines of WikiText in the column `text`, from the Hub, or from a folder with `wiki.{train,valid,test}.tokens`."""
    if Path(path, WIKITEXT_FILES[split]).is_file():
        file = str(Path(path, WIKITEXT_FILES[split]))
        return datasets.load_dataset("text", data_files=file, split="train")
    return load_split(path, split, name)


def wikitext_tokenizer(train: datasets.Dataset) -> PreTrainedTokenizerBase:
    """One token for each word of the lines to train with, see `vocabularies.frequent_words`."""
    return word_tokenizer(frequent_words(row["text"] for row in train))


def token_stream(rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """The tokens of all lines, one after another, `[tokens]` (int32); each line ends as the tokenizer ends it."""

    def convert(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"input_ids": tokenizer(batch["text"], return_attention_mask=False)["input_ids"]}

    column = rows.map(convert, batched=True, remove_columns=rows.column_names).data.column("input_ids")
    return np.concatenate([chunk.flatten().to_numpy() for chunk in column.chunks]).astype(np.int32)


class TokenBlocks(torch.utils.data.Dataset):
    """
    Rows with `input_ids` and `labels` `[block_size]` (int64), the same tokens.

    A block begins with the last token of the one before, so that every token but the first is predicted once.

    Args:
        tokens: `[tokens]`.
        block_size: tokens of a row.
        drop_last: leave out the last tokens if they fill no block; otherwise they are a shorter one.
    """

    def __init__(self, tokens: np.ndarray, block_size: int, drop_last: bool = True) -> None:
        if block_size < 2 or len(tokens) < (block_size if drop_last else 2):
            raise ValueError(f"{len(tokens)} tokens give no block of {block_size}; a block has at least two.")
        self.tokens, self.block_size = tokens, block_size
        full, rest = divmod(len(tokens) - 1, block_size - 1)
        self.count = full + (rest > 0 and not drop_last)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < self.count:
            raise IndexError(f"index is {index}; there are {self.count} rows.")
        start = index * (self.block_size - 1)
        ids = torch.from_numpy(self.tokens[start : start + self.block_size].astype(np.int64))
        return {"input_ids": ids, "labels": ids.clone()}


def load_arrays(folder: str | os.PathLike, split: str) -> StackDataset:
    """
    Series and targets of `folder/<split>.npz`: `values` `[series, length, channels]` and `targets` `[series]`.

    Returns:
        Rows with `input_values` `[length, channels]` and `labels`, both float32, for regression.
    """
    with np.load(Path(folder, f"{split}.npz"), allow_pickle=False) as arrays:
        values, targets = (torch.from_numpy(arrays[name].astype(np.float32)) for name in ("values", "targets"))
    return StackDataset(input_values=values, labels=targets)  # type: ignore[arg-type]


class Forecasts(torch.utils.data.Dataset):
    """
    All windows of a table of measurements, normalised by mean and deviation of its first rows.

    Rows have `past_values` `[context, columns]`, `future_values` `[horizon, columns]` (float32) and `time_features`
    `[context + horizon, features]` (int64), which are the first ones of `CALENDAR`.

    Args:
        file: CSV with a column `date` and numbers, such as those of ETT.
        columns: names of the ones to read and forecast, such as `["OT"]`.
        context: steps that are known.
        horizon: steps to forecast.
        rows: first row to forecast, and the one after the last.
        num_train: rows that mean and deviation are of.
        num_features: of the calendar.
    """

    def __init__(
        self,
        file: str | os.PathLike,
        columns: Sequence[str],
        context: int,
        horizon: int,
        rows: tuple[int, int],
        num_train: int,
        num_features: int = len(HOURLY),
    ) -> None:
        table = pandas.read_csv(file, parse_dates=["date"])
        missing = sorted(set(columns) - set(table.columns))
        if missing:
            raise ValueError(f"{file} has no column {', '.join(missing)}; it has {', '.join(table.columns)}.")
        values, dates = table[list(columns)].to_numpy(np.float64), table["date"].dt
        values = (values - values[:num_train].mean(0)) / values[:num_train].std(0)
        self.values = torch.from_numpy(values.astype(np.float32))
        times = [dates.hour, dates.day_of_week, dates.day, dates.month, dates.minute // 15][:num_features]
        self.times = torch.from_numpy(np.stack(times, axis=-1).astype(np.int64))
        self.context, self.horizon = context, horizon
        self.first = max(0, rows[0] - context)
        self.count = min(rows[1], len(values)) - horizon - context - self.first + 1
        if self.count < 1:
            raise ValueError(
                f"Rows {rows} of {file}, which has {len(values)}, are no window of {context} + {horizon}."
            )

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < self.count:
            raise IndexError(f"index is {index}; there are {self.count} rows.")
        start = self.first + index
        middle, end = start + self.context, start + self.context + self.horizon
        past, future = self.values[start:middle], self.values[middle:end]
        return {"past_values": past, "future_values": future, "time_features": self.times[start:end]}


__all__ = [
    "CALENDAR",
    "HOURLY",
    "Forecasts",
    "TokenBlocks",
    "load_arrays",
    "load_wikitext",
    "token_stream",
    "wikitext_tokenizer",
]
