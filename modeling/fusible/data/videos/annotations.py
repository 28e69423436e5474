"""
Which videos there are, and their labels: folders of classes, and the annotation files of the usual data sets.

A video is a file, or a folder of its frames. Where annotations name a file that is not there, a folder of the same
name without the ending takes its place.
"""

import csv
import json
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..classes import class_numbers
from ..files import visible_files


VIDEO_SUFFIXES = (".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
# as a word of its own or a part of CamelCase, but not inside one, such as in "upright"
_SIDE = re.compile(r"(?<![A-Za-z])(?:left|Left|LEFT|right|Right|RIGHT)(?![a-z])|(?<=[a-z])(?:Left|Right)(?![a-z])")


class MissingVideoWarning(UserWarning):
    """Annotated videos that are not there are left out."""


@dataclass(frozen=True)
class VideoList:
    """Paths of videos, their labels, and the names of the classes that labels number."""

    paths: list[Path]
    labels: list[int]
    classes: list[str]

    def __len__(self) -> int:
        return len(self.paths)


def mirrored_labels(classes: Sequence[str]) -> list[int | None]:
    """
    Labels after a horizontal flip.

    A class whose name says left or right becomes the class with the sides exchanged, for instance "Pulling something
    from left to right" and "Pulling something from right to left"; `None` if there is none: do not flip it.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    other = {"left": "right", "Left": "Right", "LEFT": "RIGHT"}
    other |= {right: left for left, right in other.items()}
    return [
        # all sides are exchanged in one pass: two replacements in turn would undo each other
        numbers.get(_SIDE.sub(lambda side: other[side.group()], name)) if _SIDE.search(name) else number
        for number, name in enumerate(classes)
    ]


def few_shot(videos: VideoList, shots: int, seed: int = 0) -> VideoList:
    """
    A random subset with `shots` videos of each class, in the order of the list.

    Raises:
        ValueError: if a class has fewer.
    """
    generator, labels = np.random.default_rng(seed), np.array(videos.labels)
    chosen: list[int] = []
    for number, name in enumerate(videos.classes):
        members = np.flatnonzero(labels == number)
        if not 1 <= shots <= len(members):
            raise ValueError(f"shots is {shots}; class {name!r} has {len(members)} videos.")
        chosen += generator.choice(members, shots, replace=False).tolist()
    # the order of the list, whatever the order of the classes
    chosen.sort()
    return VideoList([videos.paths[i] for i in chosen], [videos.labels[i] for i in chosen], videos.classes)


def _locate(path: Path) -> Path | None:
    if path.exists():
        return path
    frames = path.with_suffix("")
    return frames if frames.is_dir() else None


def _existing(
    source: str | os.PathLike, entries: Iterable[tuple[Sequence[Path], int]], classes: Sequence[str]
) -> VideoList:
    """The entries (possible paths, label) whose video is there."""
    paths, labels, missing = [], [], []
    for candidates, label in entries:
        path = next(filter(None, map(_locate, candidates)), None)
        if path is None:
            missing.append(candidates[0])
        else:
            paths.append(path)
            labels.append(label)
    if not paths:
        raise FileNotFoundError(
            f"None of the {len(missing)} videos of {source} is there; the first is {missing[0]}."
            if missing
            else f"{source} names no videos."
        )
    if missing:
        warnings.warn(
            f"{len(missing)} of the {len(missing) + len(paths)} videos of {source} are not there and are left out; "
            f"the first is {missing[0]}.",
            MissingVideoWarning,
            stacklevel=3,
        )
    return VideoList(paths, labels, list(classes))


def _lines(file: str | os.PathLike) -> list[str]:
    return [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]


def folder_of_classes(folder: str | os.PathLike, classes: Sequence[str] | None = None) -> VideoList:
    """
    `folder/class name/video`, without hidden files and folders.

    Args:
        classes: names of all classes in the order of their numbers, default: the folders in alphabetical order. Pass
            those of the training split for the others.

    Raises:
        FileNotFoundError: if there are no videos.
        ValueError: for a folder that is no class.
    """
    folders = [path for path in visible_files(folder) if path.is_dir()]
    names = [path.name for path in folders]
    classes = names if classes is None else classes
    numbers = class_numbers(names, classes, folder, "the split to train with")
    entries = [
        ([path], number)
        for place, number in zip(folders, numbers, strict=True)
        for path in visible_files(place)
        if path.is_dir() or path.suffix.lower() in VIDEO_SUFFIXES
    ]
    return _existing(folder, entries, classes)


def annotation_list(file: str | os.PathLike, folder: str | os.PathLike, classes: Sequence[str]) -> VideoList:
    """
    Lines `path label`, or `path number-of-frames label` for folders of frames; paths are relative to `folder`.

    Args:
        classes: names of all classes in the order of the labels; flips need them (see `mirrored_labels`).

    Raises:
        FileNotFoundError: if there is none of the videos.
        ValueError: for a line without a label, or a label that is no class.
    """
    entries = []
    for number, line in enumerate(Path(file).read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        # from the right, as paths can have spaces
        path, _, label = line.strip().rpartition(" ")
        path = path.strip()
        if not path or not label.isdecimal() or int(label) >= len(classes):
            raise ValueError(f"Line {number} of {file} is {line!r}, not a path and a label below {len(classes)}.")
        # folders of frames: the number of frames, which is counted anew, stands between path and label
        if Path(path).suffix.lower() not in VIDEO_SUFFIXES:
            path = re.sub(r"\s+\d+$", "", path)
        entries.append(([Path(folder, path)], int(label)))
    return _existing(file, entries, classes)


def kinetics(file: str | os.PathLike, folder: str | os.PathLike, classes: Sequence[str] | None = None) -> VideoList:
    """
    Kinetics from its annotations (CSV with `label`, `youtube_id`, `time_start`, `time_end`).

    Videos are `youtube id_start_end.mp4` with times of six digits, in `folder` or its subfolders of the classes'
    names, with spaces or underscores.

    Args:
        classes: default: the labels of the file in alphabetical order. Pass those of the training split for the others
            if they do not have all.

    Raises:
        FileNotFoundError: if there is none of the videos.
        ValueError: for a file without these columns, a line that cannot be read, or a label that is no class.
    """
    rows: list[dict[str, str]] = []
    line = 0
    with open(file, newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines, strict=True)
        try:
            for row in reader:
                # a quote that is not closed takes the following lines into its cell
                if None in row or any(cell is None or "\n" in cell for cell in row.values()):
                    raise csv.Error("a quote is not closed, or there are too many or too few cells")
                rows.append(row)
                line = reader.line_num
        except csv.Error as error:
            raise ValueError(f"{file} cannot be read after line {line}: {error}.") from error
    columns = {"label", "youtube_id", "time_start", "time_end"}
    if not rows or not columns <= set(rows[0]):
        raise ValueError(f"{file} must have rows with the columns {', '.join(sorted(columns))}.")
    classes = sorted({row["label"] for row in rows}) if classes is None else classes
    numbers = {name: number for number, name in enumerate(classes)}
    entries = []
    for row in rows:
        if row["label"] not in numbers:
            raise ValueError(f"{file} has the label {row['label']!r}, which is none of the {len(classes)} classes.")
        name = f"{row['youtube_id']}_{int(row['time_start']):06d}_{int(row['time_end']):06d}.mp4"
        # the usual download scripts differ in whether they make folders, and in how they name them
        folders = ("", row["label"], row["label"].replace(" ", "_"))
        entries.append(([Path(folder, place, name) for place in folders], numbers[row["label"]]))
    return _existing(file, entries, classes)


def something_something_v2(
    file: str | os.PathLike, labels_file: str | os.PathLike, folder: str | os.PathLike
) -> VideoList:
    """
    Something-Something V2 from its annotations, `something-something-v2-{train,validation,labels}.json`.

    Videos are `folder/id.webm`.

    Raises:
        FileNotFoundError: if there is none of the videos.
        ValueError: for a file without labels (the test split).
    """
    numbers = {name: int(number) for name, number in json.loads(Path(labels_file).read_text(encoding="utf-8")).items()}
    rows = json.loads(Path(file).read_text(encoding="utf-8"))
    entries = []
    for row in rows:
        # templates mark the objects, "Holding [something]"; the file of labels does not
        name = row.get("template", "").replace("[", "").replace("]", "")
        if name not in numbers:
            raise ValueError(f"Video {row['id']} of {file} has the label {name!r}, which {labels_file} does not have.")
        entries.append(([Path(folder, f"{row['id']}.webm")], numbers[name]))
    return _existing(file, entries, sorted(numbers, key=numbers.__getitem__))


def ucf101(folder: str | os.PathLike, splits: str | os.PathLike, split: int = 1, train: bool = True) -> VideoList:
    """
    UCF101 from its split files: `classInd.txt`, `trainlist0?.txt` and `testlist0?.txt` in the folder `splits`.

    Videos are `folder/class/name.avi`.

    Raises:
        FileNotFoundError: if there is none of the videos.
        ValueError: for a video of a class that `classInd.txt` does not have.
    """
    classes = [line.split()[1] for line in _lines(Path(splits, "classInd.txt"))]
    numbers = {name: number for number, name in enumerate(classes)}
    file = Path(splits, f"{'train' if train else 'test'}list{split:02d}.txt")
    names = [line.split()[0] for line in _lines(file)]
    # lines of training files have a label as well, those of test files do not: the folder tells in both
    unknown = {Path(name).parent.name for name in names} - set(numbers)
    if unknown:
        raise ValueError(f"{file} has the classes {', '.join(sorted(unknown))}, which classInd.txt does not have.")
    entries = [([Path(folder, name)], numbers[Path(name).parent.name]) for name in names]
    return _existing(file, entries, classes)


def hmdb51(folder: str | os.PathLike, splits: str | os.PathLike, split: int = 1, train: bool = True) -> VideoList:
    """
    HMDB51 from its split files: `class_test_split?.txt` in the folder `splits`; classes in alphabetical order.

    Videos are `folder/class/name.avi`. In the files 1 is for training, 2 for testing, 0 for neither.

    Raises:
        FileNotFoundError: if there are no such files, or none of the videos.
    """
    ending = f"_test_split{split}.txt"
    classes = sorted(file.name.removesuffix(ending) for file in visible_files(splits, f"*{ending}"))
    entries = [
        ([Path(folder, name, line.split()[0])], label)
        for label, name in enumerate(classes)
        for line in _lines(Path(splits, name + ending))
        if line.split()[1] == ("1" if train else "2")
    ]
    return _existing(splits, entries, classes)


__all__ = [
    "VIDEO_SUFFIXES",
    "MissingVideoWarning",
    "VideoList",
    "annotation_list",
    "few_shot",
    "folder_of_classes",
    "hmdb51",
    "kinetics",
    "mirrored_labels",
    "something_something_v2",
    "ucf101",
]
