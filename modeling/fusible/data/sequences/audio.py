"""Recordings as raw waveforms, or as tokens of their samples: Speech Commands as it is published, and any folder."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from ..files import number_order, visible_files
from .wave_files import measure_wave, read_wave


TEN_WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LEVELS, MU = 256, 255  # tokens of samples, and what G.711 calls mu
SPEECH_RATE = 16_000  # samples per second of Speech Commands
SILENCE = LEVELS // 2  # the token of zero, in front of each row
Split = Literal["train", "validation", "test"]
Quantization = Literal["mu-law", "linear"]


def encode_samples(samples: np.ndarray, quantization: Quantization = "mu-law") -> np.ndarray:
    """
    Samples as tokens from 0 to 255 (int64), as the authors of SaShiMi have it.

    The least sample becomes -1 and the greatest 1, then mu-law is `sign(x) log(1 + 255 |x|) / log 256`, and -1 to 1
    are cut into 256 bins of equal width.

    Args:
        samples: `[length]`, of any scale.
        quantization: `"linear"` for bins without mu-law.

    Raises:
        ValueError: for another quantization.
    """
    if quantization not in ("mu-law", "linear"):
        raise ValueError(f"quantization is {quantization!r}; it must be 'mu-law' or 'linear'.")
    low, high = float(samples.min()), float(samples.max())
    # a window of silence has no scale; it becomes all zeros
    values = np.zeros(len(samples)) if high == low else 2 * (samples.astype(np.float64) - low) / (high - low) - 1
    if quantization == "mu-law":
        values = np.sign(values) * np.log1p(MU * np.abs(values)) / np.log1p(MU)
    # the greatest sample, 1, would otherwise fall into a bin of its own, number 256
    return np.minimum((values + 1) / 2 * LEVELS, LEVELS - 1).astype(np.int64)


def decode_samples(tokens: np.ndarray, quantization: Quantization = "mu-law") -> np.ndarray:
    """Tokens as samples (float32, from -1 to 1): the middles of the bins of `encode_samples`."""
    # bin k reaches from 2 k / 256 - 1 to 2 (k + 1) / 256 - 1
    values = (2 * np.asarray(tokens, np.float64) + 1) / LEVELS - 1
    if quantization == "mu-law":
        values = np.sign(values) * np.expm1(np.abs(values) * np.log1p(MU)) / MU
    return values.astype(np.float32)


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
        sampling_rate: of all files, in samples per second; reading a row of another one raises `ValueError`.

    Raises:
        FileNotFoundError: if there are no recordings of a word.
        ValueError: for another split.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        split: Split,
        words: Sequence[str] | None = None,
        length: int = 16_000,
        step: int = 1,
        sampling_rate: int = SPEECH_RATE,
    ) -> None:
        root = Path(folder)
        if split not in ("train", "validation", "test"):
            raise ValueError(f"split is {split!r}; it must be 'train', 'validation' or 'test'.")
        if words is None:
            words = [path.name for path in visible_files(root) if path.is_dir() and not path.name.startswith("_")]
        self.classes = sorted(words)
        self.length = length
        self.step = step
        self.sampling_rate = sampling_rate
        lists = {
            name: set((root / file).read_text(encoding="utf-8").split())
            for name, file in {"validation": "validation_list.txt", "test": "testing_list.txt"}.items()
        }
        self.files: list[Path] = []
        self.labels: list[int] = []
        for label, word in enumerate(self.classes):
            files = visible_files(root / word, "*.wav")
            if not files:
                raise FileNotFoundError(f"There are no recordings of {word!r} in {root}.")
            for file in files:
                name = f"{word}/{file.name}"
                # the lists keep all recordings of a speaker in one split
                found = next((key for key, names in lists.items() if name in names), "train")
                if found == split:
                    self.files.append(file)
                    self.labels.append(label)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        samples = read_wave(self.files[index], sampling_rate=self.sampling_rate)[: self.length]
        padded = np.pad(samples, (0, self.length - len(samples)))[:: self.step]
        # the copy drops the samples that a step leaves out, and makes the slice contiguous
        return {"input_values": torch.from_numpy(padded.copy()), "labels": torch.tensor(self.labels[index])}


def split_recordings(folder: str | os.PathLike, split: Split, train_share: float = 0.88) -> list[Path]:
    """
    The `.wav` files of a folder in the order of the numbers in their names, cut into three.

    Args:
        folder: of one long recording in parts, such as those of YouTubeMix and of Beethoven's sonatas.
        split: validation is the half of the rest that comes first.
        train_share: of the files.

    Raises:
        FileNotFoundError: if there are none.
    """
    # in the order of their numbers, so that the parts are in the recording's order
    files = sorted(visible_files(folder, "*.wav"), key=number_order)
    if not files:
        raise FileNotFoundError(f"There are no .wav files in {folder}.")
    first, second = int(train_share * len(files)), int((1 + train_share) / 2 * len(files))
    return {"train": files[:first], "validation": files[first:second], "test": files[second:]}[split]


class AudioTokens(torch.utils.data.Dataset):
    """
    Rows with `input_ids` and `labels` `[length + 1]` (int64) of windows of recordings: silence, then their samples.

    Args:
        files: see `read_wave`.
        length: of a window, in samples.
        quantization: see `encode_samples`; each window is stretched for itself.
        drop_last: leave out the end of a recording if it fills no window; otherwise, silence follows, which is not
            to be learned.
        sampling_rate: of all files, in samples per second; default: that of the first one.

    Raises:
        ValueError: if no recording is long enough, or one cannot be read or has another rate.
    """

    def __init__(
        self,
        files: Sequence[Path],
        length: int,
        quantization: Quantization = "mu-law",
        drop_last: bool = True,
        sampling_rate: int | None = None,
    ) -> None:
        self.length = length
        self.quantization = quantization
        self.sampling_rate = sampling_rate
        self.windows: list[tuple[Path, int]] = []
        for file in files:
            num_samples, self.sampling_rate = measure_wave(file, self.sampling_rate)
            # a window that starts before `end` is whole, or at least not empty
            end = num_samples - (length - 1 if drop_last else 0)
            self.windows += [(file, start) for start in range(0, end, length)]
        if not self.windows:
            raise ValueError(f"Of {len(files)} recordings, none has {length if drop_last else 1} samples.")

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        file, start = self.windows[index]
        tokens = encode_samples(read_wave(file, start, self.length), self.quantization)
        # -100 on the first token, which is given, and on the padding of a short end
        ids, labels = torch.full((self.length + 1,), SILENCE), torch.full((self.length + 1,), -100)
        ids[1 : len(tokens) + 1] = labels[1 : len(tokens) + 1] = torch.from_numpy(tokens)
        return {"input_ids": ids, "labels": labels}


__all__ = [
    "DIGITS",
    "SILENCE",
    "TEN_WORDS",
    "AudioTokens",
    "SpeechCommands",
    "decode_samples",
    "encode_samples",
    "split_recordings",
]
