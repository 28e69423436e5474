"""Sizes that containers of videos say of themselves."""

from collections.abc import Callable
from pathlib import Path


def _riff_size(head: bytes) -> int | None:
    size = int.from_bytes(head[4:8], "little")
    return None if size == 2**32 - 1 else 8 + size


def _matroska_size(head: bytes) -> int | None:
    # an ID of 4 bytes and a number whose leading zeros say how many bytes it has; only ones stand for an unknown size
    width = 9 - head[4].bit_length()
    unknown = (1 << 7 * width) - 1
    size = int.from_bytes(head[4 : 4 + width], "big") & unknown
    return None if size == unknown else 4 + width + size


def _asf_size(head: bytes) -> int | None:
    return int.from_bytes(head[16:24], "little") or None


_ASF = bytes.fromhex("26b2758e66cf11a6d900aa0062ce6c")
# by how they start: what an AVI, a Matroska or WebM, and a WMV consist of, and the size with what is in front of it
_PARTS: dict[bytes, Callable[[bytes], int | None]] = {
    b"RIFF": _riff_size,
    bytes.fromhex("1a45dfa3"): _matroska_size,  # the header
    bytes.fromhex("18538067"): _matroska_size,  # the segment, which is all the rest
    b"\x30" + _ASF: _asf_size,  # the header
    b"\x36" + _ASF: _asf_size,  # the data
}


def is_cut_off(file: Path) -> bool:
    """
    Whether a file is shorter than its container says.

    `False` for other containers than AVI, Matroska, WebM and WMV, and for those that do not say it, as streams.
    """
    place, size = 0, file.stat().st_size
    with file.open("rb") as stream:
        while place < size:
            stream.seek(place)
            head = stream.read(32).ljust(32, b"\0")
            size_of = next((function for start, function in _PARTS.items() if head.startswith(start)), None)
            length = None if size_of is None else size_of(head)
            if length is None:
                return False
            place += length
    return place > size


__all__ = ["is_cut_off"]
