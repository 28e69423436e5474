"""Series of numbers: windows of a table to forecast, and arrays with a number to predict from each."""

import os
import warnings
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

    Raises:
        ValueError: if an array has another shape or no real numbers, or if one of these is missing (NaN) or infinite,
            in float32 as well.
    """
    file = Path(folder, f"{split}.npz")
    columns = {}
    with np.load(file, allow_pickle=False) as arrays:
        for name, axes in {"values": ["series", "length", "channels"], "targets": ["series"]}.items():
            array = arrays[name]
            if array.dtype.kind not in "fiu" or array.ndim != len(axes):
                raise ValueError(
                    f"The {name} of {file} are {array.dtype} of shape {list(array.shape)}; they must be real numbers "
                    f"[{', '.join(axes)}]."
                )
            with np.errstate(over="ignore"):  # what is too large becomes infinite, which is asked next
                columns[name] = torch.from_numpy(array.astype(np.float32))
            if not columns[name].isfinite().all():
                raise ValueError(
                    f"The {name} of {file} are not all finite numbers of float32; fill or leave out these."
                )
    return StackDataset(input_values=columns["values"], labels=columns["targets"])  # type: ignore[arg-type]


def read_table(
    file: str | os.PathLike, columns: Sequence[str], num_rows: int
) -> tuple[pandas.DatetimeIndex, np.ndarray]:
    """
    The first rows of a CSV file with a column `date`: their dates, and columns of numbers `[rows, columns]` (float64).

    Args:
        file: its rows are in the order of time and equally far apart; months and working days count as equal.
        columns: names of the ones to read.
        num_rows: of the table.

    Raises:
        ValueError: if a column is missing, there are fewer rows, a cell is no finite number, or dates cannot be read,
            do not rise, or have gaps.
    """
    try:
        # texts, as pandas would take cells such as NA for missing ones, and a column with a word in it for texts
        # without a header, so that names stay as they are and longer rows are an error: pandas would cut them off
        table = pandas.read_csv(file, dtype=str, keep_default_na=False, index_col=False, header=None)
    except ValueError as error:  # pandas' own errors are such, and do not name the file
        raise ValueError(f"{file} cannot be read as a table: {error}") from error
    table, table.columns = table[1:], table.iloc[0].astype(str).tolist()
    for name in ("date", *columns):
        if list(table.columns).count(name) > 1:
            raise ValueError(f"{file} has more than one column {name}.")
    missing = sorted({"date", *columns} - set(table.columns))
    if missing:
        raise ValueError(f"{file} has no column {', '.join(missing)}; it has {', '.join(table.columns)}.")
    if len(table) < num_rows:
        raise ValueError(f"{file} has {len(table)} rows, but {num_rows} are wanted.")
    table = table[:num_rows]
    values = np.stack([pandas.to_numeric(table[name], errors="coerce").to_numpy(np.float64) for name in columns], -1)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, column = bad[0]
        raise ValueError(
            f"{len(bad)} cells of {file} are no finite numbers, the first is {table[columns[column]].iloc[row]!r} of "
            f"{columns[column]!r} in row {row + 1}. Fill them, for instance with pandas' interpolate."
        )
    try:
        dates = pandas.DatetimeIndex(pandas.to_datetime(table["date"]))
    except ValueError as error:
        raise ValueError(f"The dates of {file} cannot be read: {error}") from error
    steps = dates[1:] - dates[:-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about another type of the result to come, of which only None counts here
        # infer_freq knows steps of the calendar, such as months, which are not equally long; it needs three dates
        even = len(set(steps)) <= 1 or pandas.infer_freq(dates) is not None
    if not (steps > pandas.Timedelta(0)).all() or not even:
        usual = steps.to_series().mode().max()
        row = int(np.flatnonzero((steps <= pandas.Timedelta(0)) | ((steps != usual) & (not even)))[0]) + 1
        raise ValueError(
            f"The dates of {file} must rise in equal steps, but row {row + 1} ({table['date'].iloc[row]}) follows "
            f"{table['date'].iloc[row - 1]}. Sort the rows, leave out repeated ones, and fill gaps."
        )
    return dates, values


class Forecasts(torch.utils.data.Dataset):
    """
    All windows of a table of measurements, normalized by mean and deviation of its first rows, or by given ones.

    A column that is constant in these rows is not divided by its deviation, 0, as by scikit-learn's `StandardScaler`.

    Rows have `past_values` `[context, columns]`, `future_values` `[horizon, columns]` (float32) and `time_features`
    `[context + horizon, features]` (int64), which are the first ones of `CALENDAR`.

    Args:
        file: CSV with a column `date` and numbers, such as those of ETT, see `read_table`.
        columns: names of the ones to read and forecast, such as `["OT"]`.
        context: steps that are known.
        horizon: steps to forecast.
        rows: first row to forecast, and the one after the last.
        num_train: rows that mean and deviation are of, if none are given.
        num_features: of the calendar.
        extractor: with the mean and deviation that a model was trained with.

    Raises:
        ValueError: if the table cannot be used, see `read_table`, there are no rows to take mean and deviation of, or
            the rows to forecast have no window.
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
        if extractor is None and num_train < 1:
            raise ValueError(f"num_train is {num_train}; mean and deviation need at least one row.")
        dates, values = read_table(file, columns, max(num_train, rows[1]))
        self.extractor = SeriesFeatureExtractor.fit(columns, values[:num_train]) if extractor is None else extractor
        self.values = torch.from_numpy(self.extractor(values, columns))
        # an infinite deviation makes everything 0
        if not self.values.isfinite().all() or not np.isfinite(self.extractor.std).all():
            raise ValueError(f"Numbers of {file} are too large for float32, also normalized.")
        # as they are, without a shift: days and months start at 1, hence their 32 and 13 in CALENDAR
        times = [dates.hour, dates.day_of_week, dates.day, dates.month, dates.minute // 15][:num_features]
        self.times = torch.from_numpy(np.stack(times, axis=-1).astype(np.int64))
        self.context = context
        self.horizon = horizon
        # windows may begin before `rows`, to know what precedes its first row, but forecast nothing before it
        self.first = max(0, rows[0] - context)
        self.count = rows[1] - horizon - context - self.first + 1
        if self.count < 1:
            raise ValueError(f"Rows {rows} of {file} are no window of {context} + {horizon}.")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < self.count:
            raise IndexError(f"index is {index}; there are {self.count} rows.")
        start = self.first + index
        middle, end = start + self.context, start + self.context + self.horizon
        past, future = self.values[start:middle], self.values[middle:end]
        return {"past_values": past, "future_values": future, "time_features": self.times[start:end]}


__all__ = ["CALENDAR", "HOURLY", "Forecasts", "load_arrays", "read_table"]
