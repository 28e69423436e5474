"""Speech Commands as raw waveforms, from the folders in which it is published."""

import os
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch


TEN_WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")


def read_wave(file: str | os.PathLike) -> np.ndarray:
    """
    Samples `[length]` (float32, from -1 to 1) of a mono file with 16 bits per sample.

    Raises:
        ValueError: for another format.
    """
    with wave.open(str(file), "rb") as audio:
        if audio.getnchannels() != 1 or audio.getsampwidth() != 2:
            raise ValueError(f"{file} must have one channel and 16 bits per sample.")
        samples = np.frombuffer(audio.readframes(audio.getnframes()), dtype="<i2")
    return samples.astype(np.float32) / 2**15


class SpeechCommands(torch.utils.data.Dataset):
    """
    Rows with `input_values` `[length]` (float32) and `labels`; words are numbered in alphabetical order.

    Args:
        folder: with a folder of `.wav` files for each word, `validation_list.txt` and `testing_list.txt`.
        split: `"train"` is what the two lists do not name.
        words: the classes; by default all folders but those whose names begin with an underscore (35 in version 2).
            `TEN_WORDS` are the ten commands.
        length: of each row, in samples of the files; shorter recordings get zeros at the end.
        step: take every so many-th sample only, 2 for half the sampling rate; the model's `config.rate` then is 2.

    Raises:
        FileNotFoundError: if there are no recordings of a word.
        ValueError: for another split.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        split: Literal["train", "validation", "test"],
        words: Sequence[str] | None = None,
        length: int = 16_000,
        step: int = 1,
    ) -> None:
        root = Path(folder)
        if split not in ("train", "validation", "test"):
            raise ValueError(f"split is {split!r}; it must be 'train', 'validation' or 'test'.")
        if words is None:
            words = [path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(("_", "."))]
        self.classes, self.length, self.step = sorted(words), length, step
        lists = {
            name: set((root / file).read_text(encoding="utf-8").split())
            for name, file in {"validation": "validation_list.txt", "test": "testing_list.txt"}.items()
        }
        self.files: list[Path] = []
        self.labels: list[int] = []
        for label, word in enumerate(self.classes):
            files = sorted((root / word).glob("*.wav"))
            if not files:
                raise FileNotFoundError(f"There are no recordings of {word!r} in {root}.")
            for file in files:
                name = f"{word}/{file.name}"
                found = next((key for key, names in lists.items() if name in names), "train")
                if found == split:
                    self.files.append(file)
                    self.labels.append(label)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        samples = read_wave(self.files[index])[: self.length]
        padded = np.pad(samples, (0, self.length - len(samples)))[:: self.step]
        return {"input_values": torch.from_numpy(padded.copy()), "labels": torch.tensor(self.labels[index])}


__all__ = ["TEN_WORDS", "SpeechCommands", "read_wave"]
