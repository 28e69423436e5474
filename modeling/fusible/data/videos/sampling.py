"""Which frames of a video a model sees: clips of neighboring frames, or frames spread over the whole video."""

from dataclasses import dataclass
from typing import Literal

import numpy as np


def _check(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1.")


@dataclass(frozen=True)
class DenseSampling:
    """
    Clips of frames at a fixed distance, as on Kinetics. Videos that are too short start again at their end.

    Args:
        num_frames: frames of a clip, L.
        interval: distance between two of them, s.
    """

    num_frames: int
    interval: int

    def __post_init__(self) -> None:
        _check(num_frames=self.num_frames, interval=self.interval)

    @property
    def min_frames(self) -> int:
        """Shorter videos are repeated."""
        return (self.num_frames - 1) * self.interval + 1

    def _clips(self, total: int, starts: np.ndarray) -> np.ndarray:
        # [clips, 1] + [num_frames]; the modulo lets videos that are too short start again
        return (starts[:, None] + np.arange(self.num_frames) * self.interval) % total

    def train(self, total: int, generator: np.random.Generator) -> np.ndarray:
        """Indices `[1, num_frames]` (int64) for a video of `total` frames; starts are uniform in [0, total - L s]."""
        _check(total=total)
        # the authors' span of training has an interval after the last frame, too; that of tests (below) has not
        last = max(total - self.num_frames * self.interval, 0)
        return self._clips(total, generator.integers(last, size=1, endpoint=True))

    def test(self, total: int, num_clips: int = 1) -> np.ndarray:
        """
        Indices `[num_clips, num_frames]` (int64) for a video of `total` frames.

        Clips start at the first possible frame, the last one, and at equal distances between; a single clip starts in
        the middle.
        """
        _check(total=total, num_clips=num_clips)
        last = max(total - self.min_frames, 0)
        if num_clips == 1:
            starts = np.array([last // 2])
        else:
            # rounded only after the multiplication: the last clip then starts at the last possible frame
            starts = np.round(np.arange(num_clips) * (last / (num_clips - 1))).astype(np.int64)
        return self._clips(total, starts)


@dataclass(frozen=True)
class UniformSampling:
    """
    One frame of each of `num_frames` equal segments of the whole video, as on Something-Something V2.

    Segments are (total - 1) / L frames long. Videos with fewer frames than segments show frames more than once.
    """

    num_frames: int

    def __post_init__(self) -> None:
        _check(num_frames=self.num_frames)

    @property
    def min_frames(self) -> int:
        """Shorter videos show frames more than once."""
        return self.num_frames

    def _borders(self, total: int) -> np.ndarray:
        segment = (total - 1) / self.num_frames
        return np.round(segment * np.arange(self.num_frames + 1)).astype(np.int64)

    def train(self, total: int, generator: np.random.Generator) -> np.ndarray:
        """Indices `[1, num_frames]` (int64) for a video of `total` frames; uniform in each segment, with both ends."""
        _check(total=total)
        borders = self._borders(total)
        # a border belongs to both of its segments, so that a segment of less than a frame has an index, too
        return generator.integers(borders[:-1], borders[1:], endpoint=True)[None]

    def test(self, total: int, num_clips: int = 1) -> np.ndarray:
        """
        Indices `[num_clips, num_frames]` (int64) for a video of `total` frames.

        Clip k takes the frames at (k + 1) / (num_clips + 1) of the segments.
        """
        _check(total=total, num_clips=num_clips)
        within = (total - 1) / self.num_frames / (num_clips + 1) * np.arange(1, num_clips + 1)
        # [1, num_frames] + [num_clips, 1]; borders are rounded, but the way into a segment is cut off, as in ZeroI2V
        return self._borders(total)[None, :-1] + within.astype(np.int64)[:, None]


Sampling = DenseSampling | UniformSampling


def make_sampling(kind: Literal["dense", "uniform"], num_frames: int, interval: int) -> Sampling:
    """
    What a ZeroI2V configuration says in `sampling`, `num_frames` and `frame_interval`.

    Raises:
        ValueError: for another kind.
    """
    if kind not in ("dense", "uniform"):
        raise ValueError(f"kind is {kind!r}; it must be 'dense' or 'uniform'.")
    return DenseSampling(num_frames, interval) if kind == "dense" else UniformSampling(num_frames)


__all__ = ["DenseSampling", "Sampling", "UniformSampling", "make_sampling"]
