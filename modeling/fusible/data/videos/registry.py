"""Data sets of videos by name, as recipes call them; see `data.registry`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...core.options import check_keys
from ..dataset import DataBundle
from . import annotations as video_lists
from .annotations import VideoList
from .datasets import EvaluationVideos, TrainingVideos
from .sampling import make_sampling


AUGMENTATION = (
    "auto_augment",
    "horizontal_flip",
    "random_erasing",
    "random_erasing_mode",
    "resized_crop_area",
    "resized_crop_ratio",
)


def video_data(
    config: Any,
    processor: Any,
    augmentation: Mapping[str, Any] | None,
    train: VideoList,
    test: VideoList,
    frame_files: str = "img_*.jpg",
    *,
    auto_augment_first: bool = True,
) -> DataBundle:
    """
    Lists of videos as data for video classifiers, with one view of each for evaluation.

    Args:
        config: of the model; `sampling`, `num_frames` and `frame_interval` are read.
        processor: the image processor, for size, mean and deviation.
        augmentation: options of `TrainingVideos`, those in `AUGMENTATION`.
        train: videos to train with.
        test: videos to evaluate on.
        frame_files: pattern of the pictures of videos that are folders.
        auto_augment_first: see `TrainingVideos`.

    Raises:
        ValueError: if there is no image processor, or an option is out of range.
    """
    if processor is None:
        raise ValueError("Videos need a processor: give one, or put preprocessor_config.json beside the recipe.")
    augmentation = augmentation or {}
    check_keys(augmentation, AUGMENTATION, "augmentation of videos")
    sampling = make_sampling(config.sampling, config.num_frames, config.frame_interval)
    size = processor.crop_size["height"]
    common: dict[str, Any] = {
        "size": size,
        # 256 for crops of 224, in the validation during training as well
        "resize": size * 8 // 7,
        "mean": processor.image_mean,
        "std": processor.image_std,
        "frame_files": frame_files,
    }
    training = TrainingVideos(train, sampling, auto_augment_first=auto_augment_first, **common, **augmentation)
    return DataBundle(training, EvaluationVideos(test, sampling, **common), classes=train.classes)


def video_folder(
    config: Any,
    processor: Any,
    augmentation: Mapping[str, Any] | None = None,
    *,
    path: str,
    eval_split: str = "test",
    frame_files: str = "img_*.jpg",
) -> DataBundle:
    """Folders `train` and `eval_split` in `path`, with a folder for each class; those in `train` are all classes."""
    train = video_lists.folder_of_classes(Path(path, "train"))
    test = video_lists.folder_of_classes(Path(path, eval_split), train.classes)
    return video_data(config, processor, augmentation, train, test, frame_files)


def kinetics400(
    config: Any,
    processor: Any,
    augmentation: Mapping[str, Any] | None = None,
    *,
    train_folder: str,
    eval_folder: str,
    train_annotations: str,
    eval_annotations: str,
    frame_files: str = "img_*.jpg",
) -> DataBundle:
    """Kinetics from its annotations, see `annotations.kinetics`."""
    train = video_lists.kinetics(train_annotations, train_folder)
    # the training split's classes: a test split that lacks one would number them differently
    test = video_lists.kinetics(eval_annotations, eval_folder, train.classes)
    return video_data(config, processor, augmentation, train, test, frame_files)


def something_something_v2(
    config: Any,
    processor: Any,
    augmentation: Mapping[str, Any] | None = None,
    *,
    folder: str,
    annotations: str,
    frame_files: str = "img_*.jpg",
) -> DataBundle:
    """Something-Something V2: videos in `folder`, and its three files of annotations in the folder `annotations`."""
    file = str(Path(annotations, "something-something-v2-{}.json"))
    train, test = (
        video_lists.something_something_v2(file.format(split), file.format("labels"), folder)
        for split in ("train", "validation")
    )
    return video_data(config, processor, augmentation, train, test, frame_files, auto_augment_first=False)


def ucf101(
    config: Any,
    processor: Any,
    augmentation: Mapping[str, Any] | None = None,
    *,
    folder: str,
    splits: str,
    split: int = 1,
    frame_files: str = "img_*.jpg",
) -> DataBundle:
    """UCF101, see `annotations.ucf101`."""
    train, test = (video_lists.ucf101(folder, splits, split, train) for train in (True, False))
    return video_data(config, processor, augmentation, train, test, frame_files)


def hmdb51(
    config: Any,
    processor: Any,
    augmentation: Mapping[str, Any] | None = None,
    *,
    folder: str,
    splits: str,
    split: int = 1,
    frame_files: str = "img_*.jpg",
) -> DataBundle:
    """HMDB51, see `annotations.hmdb51`."""
    train, test = (video_lists.hmdb51(folder, splits, split, train) for train in (True, False))
    return video_data(config, processor, augmentation, train, test, frame_files)


VIDEOS: dict[str, Callable[..., DataBundle]] = {
    "hmdb51": hmdb51,
    "kinetics400": kinetics400,
    "something_something_v2": something_something_v2,
    "ucf101": ucf101,
    "video_folder": video_folder,
}

__all__ = ["VIDEOS", "video_data", "video_folder"]
