"""Samples of WAV files (with PyAV)."""

import os
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np


def _packets(file: str | os.PathLike, start: int = 0, sampling_rate: int | None = None) -> Iterator[Any]:
    """
    The packets of a WAV file, from the one that sample `start` is in, or from an earlier one.

    Raises:
        ImportError: if PyAV is not installed.
        ValueError: if the file cannot be read, is cut off, or has another rate.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError("Sound files need PyAV: pip install 'fusible[audio]'") from error
    try:
        # the format is not guessed, as what only is named so could be a list of other files
        with av.open(file, "r", format="wav", metadata_errors="ignore") as container:
            stream = container.streams.audio[0]
            if sampling_rate not in (None, stream.sample_rate):
                raise ValueError(
                    f"{file} has {stream.sample_rate} samples per second, but {sampling_rate} are wanted. Convert it, "
                    "or say which rate is meant."
                )
            if start:
                container.seek(start, stream=stream)
            for packet in container.demux(stream):
                if packet.is_corrupt and not _written_to_a_pipe(file):
                    raise ValueError(f"{file} is cut off: it ends before the length that its header says.")
                yield packet
    except av.FFmpegError as error:
        raise ValueError(f"{file} cannot be read as sound: {error.strerror}.") from error


def _written_to_a_pipe(file: str | os.PathLike) -> bool:
    """Whether the header leaves the length open, as that of programs that cannot go back to fill it in."""
    with open(file, "rb") as content:
        content.seek(12)
        while len(header := content.read(8)) == 8:
            name, size = struct.unpack("<4sI", header)
            if name == b"data":
                # SoX writes the first, others 0 or the largest number, less what precedes
                return size == 0 or size >= 0x7FFFF000
            content.seek(size + size % 2, os.SEEK_CUR)
    return False


def measure_wave(file: str | os.PathLike, sampling_rate: int | None = None) -> tuple[int, int]:
    """
    Number of samples of a WAV file, counted and not as its header says, and their number per second.

    Raises:
        ImportError: if PyAV is not installed.
        ValueError: if the file cannot be read, has no samples or another rate, or is cut off.
    """
    length = rate = 0
    for packet in _packets(file, sampling_rate=sampling_rate):
        length += packet.duration or 0
        rate = packet.stream.sample_rate
    if not length:
        raise ValueError(f"{file} has no samples.")
    return length, rate


def read_wave(
    file: str | os.PathLike, start: int = 0, length: int | None = None, sampling_rate: int | None = None
) -> np.ndarray:
    """
    Samples `[length]` (float32, from -1 to 1) of a WAV file, by default all of them; the mean of its channels.

    Args:
        file: of integers or floats of any width, also extensible or compressed ones.
        start: the first sample.
        length: their number; fewer come where the file ends.
        sampling_rate: that the file must have, in samples per second; default: any.

    Raises:
        ImportError: if PyAV is not installed.
        ValueError: if the file cannot be read, has no samples or another rate, is cut off, or has values that are no
            numbers.
    """
    parts = []
    end = None if length is None else start + length
    for packet in _packets(file, start, sampling_rate):
        for frame in packet.decode():
            values = frame.to_ndarray()
            if not frame.format.is_planar:
                values = values.reshape(-1, len(frame.layout.channels)).T
            if values.dtype.kind in "iu":
                bits = 8 * values.dtype.itemsize
                # 8 bits are unsigned, around 128
                values = (values - np.float32(128 * (bits == 8))) / np.float32(2 ** (bits - 1))
            # packets can begin before the first sample that is wanted, and end after the last one
            begin = frame.pts
            parts.append(values[:, max(start - begin, 0) : None if end is None else max(end - begin, 0)])
        if end is not None and packet.pts is not None and packet.pts + packet.duration >= end:
            break
    samples = np.concatenate(parts, 1).mean(0, dtype=np.float32) if parts else np.zeros(0, np.float32)
    if not len(samples):
        raise ValueError(f"{file} has no samples{f' from {start} on' if start else ''}.")
    if not np.isfinite(samples).all():
        raise ValueError(f"{file} has samples that are no finite numbers.")
    return samples


__all__ = ["measure_wave", "read_wave"]
