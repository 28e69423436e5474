"""
Videos for `Trainer`: random clips for training, and the same views at each test.

`annotations` says which videos there are, `sampling` which of their frames are taken.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from ..images.rand_augment import RandAugment
from ..images.transforms import (
    ErasingMode,
    Pair,
    check_probabilities,
    erase,
    make_generator,
    normalize,
)
from .annotations import VideoList, mirrored_labels
from .decoding import CorruptVideoWarning, ShortVideoWarning, UnusableVideoError, import_av, read_frames
from .sampling import Sampling
from .transforms import crops, random_resized_crop, resize_short_side


TrainingPolicy = Literal["skip", "loop"]
EvaluationPolicy = Literal["raise", "loop"]


class _Videos(torch.utils.data.Dataset):
    """Reads a list of videos."""

    def __init__(
        self,
        videos: VideoList,
        sampling: Sampling,
        size: int,
        resize: int,
        mean: Sequence[float],
        std: Sequence[float],
        antialias: bool,
        corrupt: str,
        short: str,
        frame_files: str,
        policies: Sequence[str],
    ) -> None:
        for name, policy in {"corrupt": corrupt, "short": short}.items():
            if policy not in policies:
                raise ValueError(f"{name} is {policy!r}; it must be {' or '.join(map(repr, policies))}.")
        if not len(videos):
            raise ValueError("There are no videos.")
        if not 1 <= size <= resize:
            raise ValueError(f"size is {size} and resize is {resize}; resize must not be smaller.")
        # a missing PyAV is told here, not by a worker in the middle of an epoch
        if any(not path.is_dir() for path in videos.paths):
            import_av()
        self.videos = videos
        self.sampling = sampling
        self.size = size
        self.resize = resize
        self.mean = mean
        self.std = std
        self.antialias = antialias
        self.corrupt = corrupt
        self.short = short
        self.frame_files = frame_files

    def __len__(self) -> int:
        return len(self.videos)

    def _check_index(self, index: int) -> None:
        if not 0 <= index < len(self):
            raise IndexError(f"index is {index}; there are {len(self)} rows.")

    def _clips(self, video: int, choose: Callable[[int], np.ndarray]) -> torch.Tensor:
        """Clips `[clips, frames, 3, height, width]` (uint8); raises `UnusableVideoError`, as the policies have it."""
        path = self.videos.paths[video]

        def checked(total: int) -> np.ndarray:
            if total < self.sampling.min_frames:
                message = f"{path} has {total} frames, a clip needs {self.sampling.min_frames}"
                if self.short != "loop":
                    raise UnusableVideoError(f"{message}.", ShortVideoWarning)
                warnings.warn(f"{message}; frames are repeated.", ShortVideoWarning, stacklevel=2)
            return choose(total)

        try:
            clips = read_frames(path, checked, frame_files=self.frame_files)
        except UnusableVideoError as error:
            # without a readable frame there is nothing to loop over
            if not error.readable or self.corrupt != "loop":
                raise
            warnings.warn(f"{error} The first {error.readable} frames are used.", CorruptVideoWarning, stacklevel=2)
            # chosen anew: the indices of the first attempt were for the length that the file claims
            clips = read_frames(path, checked, frame_files=self.frame_files, readable=error.readable)
        # [clips, frames, height, width, 3] -> [clips, frames, 3, height, width]
        return torch.from_numpy(clips).movedim(-1, -3)

    def _row(self, frames: torch.Tensor, label: int) -> dict[str, Any]:
        return {"pixel_values": normalize(frames, self.mean, self.std).contiguous(), "labels": label}


class TrainingVideos(_Videos):
    """
    Rows for `Trainer`: `pixel_values` `[frames, 3, size, size]` (float32), a random clip and crop, and `labels` (int).

    Random numbers come from torch's generator, which data loaders seed for each worker and epoch.

    Args:
        videos: which ones, and their labels; see `annotations`.
        sampling: which frames.
        size: height and width of the result.
        resize: of the shorter side, before anything is cut out; default: 8/7 of `size`.
        resized_crop_area: see `random_resized_crop`.
        resized_crop_ratio: likewise.
        horizontal_flip: its probability. It exchanges left and right in the label, see `mirrored_labels`.
        auto_augment: policy of `RandAugment` for videos.
        auto_augment_first: before the crop, as ZeroI2V on Kinetics; otherwise after crop and flip, as on
            Something-Something V2.
        random_erasing: probability, see `augmentation.erase`.
        random_erasing_mode: likewise.
        mean: of each channel, of values between 0 and 1; as for the model's image processor.
        std: likewise.
        antialias: resize as PIL and image processors do, instead of as OpenCV does.
        corrupt: what becomes of a video that cannot be read to its end. "skip": a random video of the list, with its
            own label, takes its place, so that no video ends an epoch. "loop": the frames before the defect are the
            video, if there are any. A `CorruptVideoWarning` names the file, and says how many there have been.
        short: what becomes of a video with fewer frames than `sampling.min_frames`. "loop": frames are repeated.
            "skip": as above. A `ShortVideoWarning` names the file.
        frame_files: pattern of the pictures of videos that are folders.
    """

    def __init__(
        self,
        videos: VideoList,
        sampling: Sampling,
        *,
        size: int = 224,
        resize: int | None = None,
        resized_crop_area: Pair = (0.08, 1.0),
        resized_crop_ratio: Pair = (3 / 4, 4 / 3),
        horizontal_flip: float = 0.5,
        auto_augment: str | None = None,
        auto_augment_first: bool = True,
        random_erasing: float = 0.0,
        random_erasing_mode: ErasingMode = "const",
        mean: Sequence[float] = OPENAI_CLIP_MEAN,
        std: Sequence[float] = OPENAI_CLIP_STD,
        antialias: bool = False,
        corrupt: TrainingPolicy = "skip",
        short: TrainingPolicy = "loop",
        frame_files: str = "img_*.jpg",
    ) -> None:
        resize = size * 8 // 7 if resize is None else resize
        policies = get_args(TrainingPolicy)
        super().__init__(videos, sampling, size, resize, mean, std, antialias, corrupt, short, frame_files, policies)
        low, high = resized_crop_area
        if not (0 < low <= high <= 1 and 0 < resized_crop_ratio[0] <= resized_crop_ratio[1]):
            raise ValueError(
                f"resized_crop_area is {resized_crop_area} and resized_crop_ratio {resized_crop_ratio}; the smaller "
                "value must come first, areas end at 1."
            )
        check_probabilities(horizontal_flip=horizontal_flip, random_erasing=random_erasing)
        self.auto_augment = None if auto_augment is None else RandAugment(auto_augment, video=True)
        self.auto_augment_first = auto_augment_first
        self.random_erasing = random_erasing
        self.random_erasing_mode = random_erasing_mode
        self.area = resized_crop_area
        self.ratio = resized_crop_ratio
        self.horizontal_flip = horizontal_flip
        self.mirrored = mirrored_labels(videos.classes)
        # a place for each video, which several workers can mark without losing one
        self._replaced = torch.zeros(len(videos), dtype=torch.bool).share_memory_()

    @property
    def num_replaced(self) -> int:
        """How many videos others have taken the place of, in this process and its workers."""
        return int(self._replaced.sum())

    def _read(self, video: int, generator: np.random.Generator) -> tuple[torch.Tensor, int]:
        """A clip `[frames, 3, height, width]` (uint8) and label of this video or, if it must be, of another."""

        def candidates() -> Iterator[int]:
            yield video
            # drawn only if it is needed: good videos leave the generator, and so their augmentation, as it is
            yield from generator.permutation(len(self.videos)).tolist()

        for number in candidates():
            try:
                (clip,) = self._clips(number, lambda total: self.sampling.train(total, generator))
                return clip, self.videos.labels[number]
            except UnusableVideoError as error:
                self._replaced[number] = True
                warnings.warn(
                    f"{error} Another video takes its place, as of {self.num_replaced} of {len(self)} so far.",
                    error.category,
                    stacklevel=2,
                )
        raise RuntimeError(f"None of the {len(self.videos)} videos can be used.")

    def _augment(self, frames: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
        if self.auto_augment is None:
            return frames
        pictures = [Image.fromarray(frame) for frame in frames.movedim(-3, -1).contiguous().numpy()]
        pictures = self.auto_augment(pictures, generator)
        return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).movedim(-1, -3)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self._check_index(index)
        generator = make_generator()
        frames, label = self._read(index, generator)
        frames = resize_short_side(frames, self.resize, self.antialias)
        if self.auto_augment_first:
            frames = self._augment(frames, generator)
        frames = random_resized_crop(frames, self.size, generator, self.area, self.ratio, self.antialias)
        # looked up by the label that was read, which is another video's where one was replaced
        mirrored = self.mirrored[label]
        if mirrored is not None and generator.random() < self.horizontal_flip:
            frames, label = frames.flip(-1), mirrored
        if not self.auto_augment_first:
            frames = self._augment(frames, generator)
        row = self._row(frames, label)
        # after normalization, where 0 is the mean color
        row["pixel_values"] = erase(row["pixel_values"], generator, self.random_erasing, self.random_erasing_mode)
        return row


class EvaluationVideos(_Videos):
    """
    Rows for `Trainer`: `pixel_values` and `labels` (int), the same at every call.

    `pixel_values` (float32) are `[frames, 3, size, size]` or, for several views, `[views, frames, 3, size, size]`, of
    which ZeroI2V averages the results: the crops of the first clip, then those of the second one, and so on. No video
    takes the place of another one: results are of the videos of the list, or there are none.

    Args:
        num_clips: see `sampling.test`.
        num_crops: 1 or 3, see `crops`.
        resize: of the shorter side, before the crops; default: `size`.
        corrupt: what becomes of a video that cannot be read to its end. "raise": reading its row raises
            `UnusableVideoError`, which names the file. "loop": as for `TrainingVideos`, if there are frames.
        short: what becomes of a video with fewer frames than `sampling.min_frames`. "loop": frames are repeated, and a
            `ShortVideoWarning` names the file. "raise": as above.

    The other arguments are those of `TrainingVideos`.
    """

    def __init__(
        self,
        videos: VideoList,
        sampling: Sampling,
        *,
        size: int = 224,
        resize: int | None = None,
        num_clips: int = 1,
        num_crops: Literal[1, 3] = 1,
        mean: Sequence[float] = OPENAI_CLIP_MEAN,
        std: Sequence[float] = OPENAI_CLIP_STD,
        antialias: bool = False,
        corrupt: EvaluationPolicy = "raise",
        short: EvaluationPolicy = "loop",
        frame_files: str = "img_*.jpg",
    ) -> None:
        resize = size if resize is None else resize
        policies = get_args(EvaluationPolicy)
        super().__init__(videos, sampling, size, resize, mean, std, antialias, corrupt, short, frame_files, policies)
        if num_clips < 1 or num_crops not in (1, 3):
            raise ValueError(
                f"num_clips is {num_clips}, num_crops {num_crops}; give at least 1 clip, and 1 or 3 crops."
            )
        self.num_clips = num_clips
        self.num_crops = num_crops

    def __getitem__(self, index: int) -> dict[str, Any]:
        self._check_index(index)
        try:
            clips = self._clips(index, lambda total: self.sampling.test(total, self.num_clips))
        except UnusableVideoError as error:
            message = f"{error} Another one would change the results: repair it, or leave it out of the list."
            raise UnusableVideoError(message, error.category, error.readable) from error
        frames = resize_short_side(clips.flatten(0, 1), self.resize, self.antialias).unflatten(0, clips.shape[:2])
        # each crop is [clips, frames, 3, size, size]: stacked to [clips, crops, ...], then [clips * crops, ...]
        views = torch.stack(crops(frames, self.size, self.num_crops), dim=1).flatten(0, 1)
        return self._row(views if len(views) > 1 else views[0], self.videos.labels[index])


__all__ = ["EvaluationPolicy", "EvaluationVideos", "TrainingPolicy", "TrainingVideos"]
