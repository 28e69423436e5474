"""Mean and deviation of series, saved with the model that was trained on them."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from transformers import FeatureExtractionMixin


class SeriesFeatureExtractor(FeatureExtractionMixin):
    """
    Normalizes the columns of a table as they were in training.

    Args:
        columns: their names.
        mean: of each column.
        std: the deviation of each column.
        **kwargs: of `FeatureExtractionMixin`.
    """

    model_input_names = ["past_values"]

    def __init__(
        self, columns: Sequence[str] = (), mean: Sequence[float] = (), std: Sequence[float] = (), **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.columns = list(columns)
        self.mean = list(mean)
        self.std = list(std)

    @classmethod
    def fit(cls, columns: Sequence[str], values: np.ndarray) -> Self:
        """
        Mean and deviation of `values` `[rows, columns]` (float64: sums over many rows lose digits in float32).

        A constant column has the deviation 1 in place of 0, as in scikit-learn's `StandardScaler`.

        Of numbers that are too large for float64 when squared, it is infinite.
        """
        with np.errstate(over="ignore"):
            # compared and not by a deviation of 0, which rounding makes a little larger
            std = np.where((values == values[0]).all(0), 1, values.std(0))
            mean = values.mean(0)
        return cls(columns, mean.tolist(), std.tolist())

    def __call__(self, values: np.ndarray, columns: Sequence[str]) -> np.ndarray:
        """
        Normalized values `[rows, columns]` (float32).

        Args:
            values: `[rows, columns]` (float64).
            columns: their names, in any order.

        Raises:
            ValueError: for a column that there are no mean and deviation of.
        """
        missing = sorted(set(columns) - set(self.columns))
        if missing:
            raise ValueError(
                f"The model was trained on the columns {', '.join(self.columns)}; it knows no mean and deviation of "
                f"{', '.join(missing)}."
            )
        numbers = [self.columns.index(name) for name in columns]
        return ((values - np.array(self.mean)[numbers]) / np.array(self.std)[numbers]).astype(np.float32)


__all__ = ["SeriesFeatureExtractor"]
