"""Series of numbers: windows of a table to forecast, and arrays with a number to predict from each."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas
import torch
from torch.utils.data import StackDataset

from .series_features import SeriesFeatureExtractor


# how many values each feature has, which S4ForTimeSeriesPrediction embeds; the last one between full hours only
CALENDAR = {"hour": 24, "day_of_week": 7, "day": 32, "month": 13, "quarter_of_hour": 4}
HOURLY = list(CALENDAR.values())[:4]


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
    All windows of a table of measurements, normalized by mean and deviation of its first rows, or by given ones.

    Rows have `past_values` `[context, columns]`, `future_values` `[horizon, columns]` (float32) and `time_features`
    `[context + horizon, features]` (int64), which are the first ones of `CALENDAR`.

    Args:
        file: CSV with a column `date` and numbers, such as those of ETT.
        columns: names of the ones to read and forecast, such as `["OT"]`.
        context: steps that are known.
        horizon: steps to forecast.
        rows: first row to forecast, and the one after the last.
        num_train: rows that mean and deviation are of, if none are given.
        num_features: of the calendar.
        extractor: with the mean and deviation that a model was trained with.

    Raises:
        ValueError: if a column is missing, or there is no window.
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
        extractor: SeriesFeatureExtractor | None = None,
    ) -> None:
        table = pandas.read_csv(file, parse_dates=["date"])
        missing = sorted(set(columns) - set(table.columns))
        if missing:
            raise ValueError(f"{file} has no column {', '.join(missing)}; it has {', '.join(table.columns)}.")
        values, dates = table[list(columns)].to_numpy(np.float64), table["date"].dt
        self.extractor = SeriesFeatureExtractor.fit(columns, values[:num_train]) if extractor is None else extractor
        self.values = torch.from_numpy(self.extractor(values, columns))
        # as they are, without a shift: days and months start at 1, hence their 32 and 13 in CALENDAR
        times = [dates.hour, dates.day_of_week, dates.day, dates.month, dates.minute // 15][:num_features]
        self.times = torch.from_numpy(np.stack(times, axis=-1).astype(np.int64))
        self.context = context
        self.horizon = horizon
        # windows may begin before `rows`, to know what precedes its first row, but forecast nothing before it
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


__all__ = ["CALENDAR", "HOURLY", "Forecasts", "load_arrays"]
