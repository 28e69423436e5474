"""Frames of video files (with PyAV) and of folders of pictures."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..files import number_order, visible_files
from ..images.color_modes import to_rgb
from .containers import is_cut_off


class CorruptVideoWarning(UserWarning):
    """A video cannot be read, or not to its end."""


class ShortVideoWarning(UserWarning):
    """A video has fewer frames than a clip needs."""


class UnusableVideoError(ValueError):
    """
    A video that cannot be read, or is too short.

    Args:
        message: what is wrong.
        category: of the warning to give.
        readable: number of frames that can be read.
    """

    def __init__(self, message: str, category: type[Warning] = CorruptVideoWarning, readable: int = 0) -> None:
        super().__init__(message)
        self.category = category
        self.readable = readable


def import_av() -> Any:
    """PyAV, which only decoding and encoding need."""
    try:
        import av
    except ImportError as error:
        raise ImportError("Video files need PyAV: pip install 'fusible[video]'") from error
    return av


def _first_stream(container: Any, file: Path) -> Any:
    stream = next(iter(container.streams.video), None)
    if stream is None or stream.codec_context is None:
        raise UnusableVideoError(f"{file} has no video that can be decoded.")
    stream.codec_context.thread_count = 1  # data loaders have a process for each core
    return stream


def count_frames(file: str | os.PathLike) -> int:
    """
    Number of frames in a video file, counted without decoding.

    Raises:
        UnusableVideoError: if there are none, fewer than the file has in its index, or the file was cut off before
            the end of the video.
    """
    av, file = import_av(), Path(file)
    packets = shown = 0
    end: float = 0
    cut = False
    try:
        # titles that are not UTF-8 are no reason to drop a video
        with av.open(file, metadata_errors="ignore") as container:
            stream = _first_stream(container, file)
            # Not the header's number, which counts also what AVI skips and what edit lists of MP4 leave out. WebM and
            # files that lost their index have entries for a part of the frames, so that there may be more.
            expected = len(stream.index_entries)
            for packet in container.demux(stream):
                cut |= packet.is_corrupt
                # demuxing ends with an empty packet, which only flushes decoders
                if packet.size and not packet.is_corrupt:
                    packets += 1
                    # edit lists hide frames; decoders do not return them
                    shown += not packet.is_discard
                    time = packet.dts if packet.pts is None else packet.pts
                    # and a half: the room for one more
                    end = max(end, (time or 0) + 1.5 * (packet.duration or 0))
            claimed = max(expected, stream.frames)
            # AVI has a number of frames, skipped ones included; others have the time of all streams, or nothing
            length = stream.frames * stream.time_base or (container.duration or float("inf")) / av.time_base
            cut |= end * stream.time_base < length and is_cut_off(file)
    except av.FFmpegError as error:
        raise UnusableVideoError(f"{file} cannot be read: {error.strerror}.", readable=shown) from error
    if cut or packets < expected or not shown:
        total = claimed if claimed > packets else "an unknown number of"
        raise UnusableVideoError(f"{file} has {packets} of {total} frames.", readable=shown)
    return shown


def _display_matrix(frame: Any) -> tuple[int, ...]:
    """a, b, c and d: a pixel (x, y) of a frame, y downward, is shown at (a x + c y, b x + d y)."""
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        # of a frame with side data of a kind that PyAV has no name for, as EXIF is, it gives the angle only
        angle = np.deg2rad(frame.rotation)
        a, c = np.rint(65536 * np.cos(angle)), np.rint(65536 * np.sin(angle))
        return int(a), -int(c), int(c), int(a)
    return (1, 0, 0, 1) if matrix is None else tuple(np.frombuffer(matrix, np.int32)[[0, 1, 3, 4]].tolist())


def _upright(file: Path, picture: np.ndarray, matrix: tuple[int, ...]) -> np.ndarray:
    """A picture `[height, width, 3]`, turned and mirrored as a display matrix says."""
    a, b, c, d = matrix
    if b and c and not (a or d):
        picture, a, d = picture.swapaxes(0, 1), c, b
    elif b or c or not (a and d):
        raise UnusableVideoError(
            f"{file} is to be shown at an angle that is no multiple of 90 degrees, or skewed; its display matrix is "
            f"[[{a}, {b}], [{c}, {d}]]."
        )
    return np.ascontiguousarray(picture[:: 1 if d > 0 else -1, :: 1 if a > 0 else -1])


def _decode(file: Path, wanted: set[int]) -> tuple[dict[int, np.ndarray], int]:
    """Frames `[height, width, 3]` (uint8) by number, and how many there were up to the last wanted one."""
    av = import_av()
    frames: dict[int, np.ndarray] = {}
    number, size = 0, dict[str, int]()
    # by angle, because side data keep a frame alive until garbage is collected
    matrices: dict[int, tuple[int, ...]] = {}
    try:
        with av.open(file, metadata_errors="ignore") as container:
            for frame in container.decode(_first_stream(container, file)):
                # decoders fill in what is damaged, and go on from there; FFmpeg says so in this flag only
                if frame.is_corrupt:
                    raise UnusableVideoError(f"{file} is damaged in frame {number}.", readable=number)
                if number in wanted:
                    # a stream can change its size on the way; frames of a clip must be stacked
                    size = size or {"width": frame.width, "height": frame.height}
                    if frame.rotation not in matrices:
                        matrices[frame.rotation] = _display_matrix(frame)
                    # a worker that collects such a frame of the process that it is a fork of cannot end its threads
                    picture = frame.reformat(**size, format="rgb24", threads=1).to_ndarray()
                    frames[number] = _upright(file, picture, matrices[frame.rotation])
                number += 1
                if number > max(wanted):
                    break
    except av.FFmpegError as error:
        raise UnusableVideoError(f"{file} cannot be decoded: {error.strerror}.", readable=number) from error
    return frames, number


def _read_pictures(files: list[Path], wanted: set[int]) -> dict[int, np.ndarray]:
    frames: dict[int, np.ndarray] = {}
    size = None
    # in order, so that all wanted frames before a broken one are known to be readable
    for number in sorted(wanted):
        try:
            with Image.open(files[number]) as picture:
                frame = to_rgb(picture)
            # frames of a clip must be stacked, so the first one gives the size
            size = size or frame.size
            frames[number] = np.asarray(frame.resize(size))
        except (OSError, SyntaxError, ValueError) as error:  # Pillow's ways to say that a file is broken
            raise UnusableVideoError(f"{files[number]} cannot be read: {error}", readable=number) from error
    return frames


def read_frames(
    path: str | os.PathLike,
    choose: Callable[[int], np.ndarray],
    *,
    frame_files: str = "img_*.jpg",
    readable: int | None = None,
) -> np.ndarray:
    """
    Some frames of a video file, or of a folder of frames.

    Args:
        choose: from the number of frames to indices `[...]` of those to read.
        frame_files: pattern of a folder's files, which are taken in the order of the numbers in their names.
        readable: use so many frames instead of counting them.

    Returns:
        RGB `[..., height, width, 3]` (uint8), upright.

    Raises:
        ImportError: for a file, if PyAV is not installed.
        UnusableVideoError: if a frame cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(visible_files(path, frame_files), key=number_order)
        if not files:
            raise UnusableVideoError(f"{path} has no files {frame_files}.")
        indices = choose(len(files) if readable is None else readable)
        frames = _read_pictures(files, set(indices.flat))
    else:
        indices = choose(count_frames(path) if readable is None else readable)
        frames, decoded = _decode(path, set(indices.flat))
        if decoded and decoded <= indices.max():  # a codec can hold several frames in a packet, or none
            indices = choose(decoded)
            frames, decoded = _decode(path, set(indices.flat))
        if decoded <= indices.max():
            raise UnusableVideoError(f"{path} has {decoded} frames.", readable=decoded)
    return np.stack([frames[index] for index in indices.flat]).reshape(*indices.shape, *frames[indices.flat[0]].shape)


def write_video(file: str | os.PathLike, frames: np.ndarray, fps: int = 8) -> None:
    """
    Writes RGB frames `[frames, height, width, 3]` (uint8) losslessly: H.264 with quantizer 0 and no color conversion.

    Raises:
        ImportError: if PyAV is not installed.
    """
    av = import_av()
    with av.open(Path(file), "w") as container:
        stream = container.add_stream("libx264rgb", rate=fps, options={"qp": "0", "preset": "ultrafast"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "rgb24"
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        # the encoder holds frames back until it is called without one
        container.mux(stream.encode())


__all__ = [
    "CorruptVideoWarning",
    "ShortVideoWarning",
    "UnusableVideoError",
    "count_frames",
    "import_av",
    "read_frames",
    "write_video",
]
