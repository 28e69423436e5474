"""
Rows that models learn from, in an order and with random changes that can be repeated.

Random changes of a row follow from the seed, the epoch, the number of the row and the process: they do not depend on
workers or on what was drawn before, and a resumed training goes on exactly.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, default_data_collator


SEED = "seed"  # of a row, for the collator


@dataclass
class Data:
    """
    What a model learns from.

    Args:
        train: rows, which are dictionaries of a model's inputs; with a length, or iterable.
        eval: likewise, if there are any.
        collate: makes batches of rows.
        classes: names of the classes that labels number, if there are any.
        processor: what turns other inputs into such rows, if it follows from the data, such as a tokenizer.
        num_examples: of a stream for training, if it is known.
    """

    train: Any
    eval: Any = None
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]] = default_data_collator
    classes: Sequence[str] | None = None
    processor: Any = None
    num_examples: int | None = None


class SeededRows(torch.utils.data.Dataset):
    """
    Rows whose random changes follow from seed, epoch and number, and which pass a seed on to `SeededCollator`.

    Args:
        rows: any data set with a length; its random numbers come from torch's generator.
        seed: of all.
    """

    def __init__(self, rows: Any, seed: int = 0) -> None:
        self.rows, self.seed = rows, seed
        self._epoch = torch.tensor(0).share_memory_()  # so that workers that go on to the next epoch know it

    @property
    def epoch(self) -> int:
        """Which epoch rows are of."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next rows are of."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        # numbers from the length on are further copies of rows, see `NumberedCopies`
        copy, index = divmod(number, len(self.rows))
        seed = int(np.random.SeedSequence([self.seed, self.epoch, copy, index]).generate_state(1, np.uint64)[0] >> 1)
        with _seeded(seed):
            return {**self.rows[index], SEED: seed}


class SeededCollator:
    """A collator whose random numbers follow from the first row's seed, if rows have one."""

    def __init__(self, collate: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
        self.collate = collate

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        if SEED not in rows[0]:
            return self.collate(rows)
        with _seeded(rows[0][SEED]):
            return self.collate([{name: value for name, value in row.items() if name != SEED} for row in rows])


class _seeded:
    """A block in which torch's generator starts from a seed; afterwards it is as it was."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __enter__(self) -> None:
        self.state = torch.get_rng_state()
        torch.default_generator.manual_seed(self.seed)  # of the CPU alone: devices go on with their dropout

    def __exit__(self, *error: object) -> None:
        torch.set_rng_state(self.state)


class NumberedCopies(torch.utils.data.Sampler[int]):
    """
    A sampler that shows rows several times, with the copies told apart for `SeededRows`.

    Args:
        sampler: yields numbers of rows, with `set_epoch`.
        num_samples: of the data set.
    """

    def __init__(self, sampler: Any, num_samples: int) -> None:
        self.sampler, self.num_samples = sampler, num_samples

    def __len__(self) -> int:
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration is of."""
        self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        for position, index in enumerate(self.sampler):
            yield index + position * self.num_samples


class EpochCallback(TrainerCallback):
    """Tells the rows which epoch it is; with several processes, Accelerate tells only the sampler."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.rows.set_epoch(int(state.epoch or 0))


class Mapped(torch.utils.data.Dataset):
    """Rows of a data set after a function."""

    def __init__(self, rows: Any, function: Callable[[Any], dict[str, Any]]) -> None:
        self.rows, self.function = rows, function

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.function(self.rows[index])


__all__ = ["Data", "EpochCallback", "Mapped", "NumberedCopies", "SeededCollator", "SeededRows"]
