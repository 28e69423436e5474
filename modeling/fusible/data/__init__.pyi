"""Public names and their modules. Each is imported when it is first used."""

from .dataset import DataBundle as DataBundle, MappedDataset as MappedDataset
from .registry import DATASETS as DATASETS, load_data as load_data
from .reproducible import (
    EpochCallback as EpochCallback,
    RepeatSampler as RepeatSampler,
    SeededCollator as SeededCollator,
    SeededDataset as SeededDataset,
)
