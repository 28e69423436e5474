"""
Order and random changes of training data that can be repeated.

Random changes of a row follow from the seed, the epoch, the number of the row and the process: they do not depend on
workers or on what was drawn before, and a resumed training goes on exactly.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


SEED = "seed"  # of a row, for the collator


class SeededDataset(torch.utils.data.Dataset):
    """
    Rows whose random changes follow from seed, epoch and number, and which pass a seed on to `SeededCollator`.

    Args:
        dataset: any one with a length; its random numbers come from torch's generator.
        seed: of all.
    """

    def __init__(self, dataset: Any, seed: int = 0) -> None:
        self.dataset = dataset
        self.seed = seed
        self._epoch = torch.tensor(0).share_memory_()  # so that workers that go on to the next epoch know it

    @property
    def epoch(self) -> int:
        """Which epoch rows are of."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next rows are of."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> dict[str, Any]:
        # numbers from the length on are further copies of rows, see `RepeatSampler`
        copy, index = divmod(number, len(self.dataset))
        # SeedSequence mixes the numbers, so that neighbors get unlike streams; 63 bits fit a signed integer
        seed = int(np.random.SeedSequence([self.seed, self.epoch, copy, index]).generate_state(1, np.uint64)[0] >> 1)
        with _seeded(seed):
            # read inside the block, as data sets draw their random changes when a row is read
            return {**self.dataset[index], SEED: seed}


class SeededCollator:
    """A collator whose random numbers follow from the first row's seed, if rows have one."""

    def __init__(self, collate: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
        self.collate = collate

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        # streams have no SeededDataset below them
        if SEED not in rows[0]:
            return self.collate(rows)
        with _seeded(rows[0][SEED]):
            # models do not take the seed, and collators would stack it
            return self.collate([{name: value for name, value in row.items() if name != SEED} for row in rows])


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """A block in which torch's generator starts from a seed; afterwards it is as it was."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)  # of the CPU alone: devices go on with their dropout
    try:
        yield
    finally:
        torch.set_rng_state(state)


class RepeatSampler(torch.utils.data.Sampler[int]):
    """
    A sampler that shows rows several times, with the copies told apart for `SeededDataset`.

    Args:
        sampler: yields numbers of rows, with `set_epoch`.
        num_samples: of the data set.
    """

    def __init__(self, sampler: Any, num_samples: int) -> None:
        self.sampler = sampler
        self.num_samples = num_samples

    def __len__(self) -> int:
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration is of."""
        self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        for position, index in enumerate(self.sampler):
            # a position is unique in its epoch, so all copies of a row get different seeds
            yield index + position * self.num_samples


class EpochCallback(TrainerCallback):
    """Tells a data set which epoch it is; with several processes, Accelerate tells only the sampler."""

    def __init__(self, dataset: SeededDataset) -> None:
        self.dataset = dataset

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # state.epoch has a fraction when training resumes within an epoch
        self.dataset.set_epoch(int(state.epoch or 0))


__all__ = ["EpochCallback", "RepeatSampler", "SeededCollator", "SeededDataset"]
