"""
Labeled point clouds: generated shapes, and the usual files.

Files are HDF5 (`.h5`) with `data` `[clouds, points, channels]` (floating-point, coordinates first) and `label`
`[clouds]` or `[clouds, 1]` (integers), as ModelNet40 and ScanObjectNN are published, or NumPy's `.npz` with the same
under the names `points` and `labels`.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ..files import visible_files
from .synthetic_shapes import SHAPES


def random_rotations(num_rotations: int, generator: np.random.Generator, axis: Literal["so3", "z"]) -> np.ndarray:
    """`[num_rotations, 3, 3]` (float64), uniform over all rotations or over those about the z axis."""
    # a normal vector has no preferred direction, and uniform unit quaternions are uniform rotations
    quaternions = generator.standard_normal((num_rotations, 4))
    if axis == "z":
        # w and z alone: the axis is z, and (w, z) is uniform on the circle of half angles
        quaternions[:, 1:3] = 0
    w, x, y, z = (quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    # [3, 3, rotations] -> [rotations, 3, 3]
    return np.moveaxis(np.array(rows), -1, 0)


def generate_shapes(
    num_samples: int,
    num_points: int = 1024,
    seed: int = 0,
    *,
    shapes: Sequence[str] = tuple(SHAPES),
    noise: float = 0.01,
    rotation: Literal["so3", "z"] | None = "so3",
    scale: tuple[float, float] = (0.8, 1.25),
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Clouds of points that are uniform on the surfaces of simple solids.

    Args:
        num_samples: number of clouds; the classes take turns, in random order.
        num_points: of each cloud.
        seed: the same seed gives the same clouds.
        shapes: the classes, names in `SHAPES`.
        noise: standard deviation of what is added to each coordinate.
        rotation: random ones, of any kind or about the z axis; `None` for upright solids.
        scale: smallest and largest factor on a cloud, before the noise.

    Returns:
        Points `[num_samples, num_points, 3]` (float32) and labels `[num_samples]` (int64), which number `shapes`.

    Raises:
        ValueError: for an unknown shape, rotation or scale.
    """
    unknown = [name for name in shapes if name not in SHAPES]
    if unknown or not shapes:
        raise ValueError(f"shapes are {list(shapes)}; give at least one of {', '.join(SHAPES)}.")
    if rotation not in ("so3", "z", None):
        raise ValueError(f"rotation is {rotation!r}; it must be 'so3', 'z' or None.")
    if not 0 < scale[0] <= scale[1]:
        raise ValueError(f"scale is {scale}; it must be two positive factors, the smaller first.")
    generator = np.random.default_rng(seed)
    # equal shares of all classes, up to one cloud
    labels = generator.permutation(np.arange(num_samples) % len(shapes))
    points = np.empty((num_samples, num_points, 3))
    for label, name in enumerate(shapes):
        chosen = labels == label
        points[chosen] = SHAPES[name](generator, (int(chosen.sum()), num_points))
    if rotation is not None:
        # points are rows, so R acts as its transpose from the right
        points = points @ random_rotations(num_samples, generator, rotation).swapaxes(1, 2)
    points *= generator.uniform(*scale, (num_samples, 1, 1))
    # after rotation and scale: a sensor's noise does not grow with the solid
    points += noise * generator.standard_normal(points.shape)
    return torch.from_numpy(points).float(), torch.from_numpy(labels)


def _read(file: Path) -> tuple[np.ndarray, np.ndarray]:
    def take(arrays: Mapping[str, Any], *names: str) -> tuple[np.ndarray, np.ndarray]:
        missing = [name for name in names if name not in arrays]
        if missing:
            raise ValueError(f"{file} has no {' and no '.join(missing)}; it has {', '.join(arrays) or 'nothing'}.")
        points, labels = (np.asarray(arrays[name]) for name in names)
        return points, labels

    if not file.is_file():
        raise FileNotFoundError(f"There is no file {file}.")
    if file.suffix == ".npz":
        # no pickles: loading one from a stranger runs code
        with np.load(file, allow_pickle=False) as arrays:
            return take(arrays, "points", "labels")
    if file.suffix not in (".h5", ".hdf5"):
        raise ValueError(f"{file} is neither .h5 nor .npz.")
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"Reading {file} needs h5py: pip install h5py") from error
    with h5py.File(file) as arrays:
        return take(arrays, "data", "label")


def load_point_clouds(*files: str | os.PathLike) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Labeled clouds of one or more files, one after the other; formats are told apart by the files' endings.

    Returns:
        Points `[clouds, points, channels]` (float32) and labels `[clouds]` (int64).

    Raises:
        FileNotFoundError: if a file is not there.
        ImportError: if a file is HDF5 and h5py is not installed.
        ValueError: if a file has another format, or arrays of the files do not fit together.
    """
    if not files:
        raise ValueError("Give at least one file.")
    all_points: list[torch.Tensor] = []
    all_labels: list[torch.Tensor] = []
    for file in map(Path, files):
        points, labels = _read(file)
        if points.ndim != 3 or points.shape[2] < 3 or not np.issubdtype(points.dtype, np.floating):
            raise ValueError(
                f"The points of {file} are {points.dtype} of shape {list(points.shape)}; they must be floating-point "
                "[clouds, points, channels] with at least 3 channels."
            )
        if labels.shape not in ((len(points),), (len(points), 1)) or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"The labels of {file} are {labels.dtype} of shape {list(labels.shape)}; they must be integers, one "
                f"for each of {len(points)} clouds."
            )
        if all_points and points.shape[1:] != all_points[0].shape[1:]:
            raise ValueError(
                f"The clouds of {file} have shape {list(points.shape[1:])}, those of {files[0]} "
                f"{list(all_points[0].shape[1:])}."
            )
        with np.errstate(over="ignore"):  # what is too large becomes infinite, which is asked next
            points = points.astype(np.float32)
        if not np.isfinite(points).all():
            raise ValueError(f"The points of {file} are not all finite numbers of float32; leave out these clouds.")
        all_points.append(torch.from_numpy(points))
        all_labels.append(torch.from_numpy(labels.astype(np.int64).reshape(-1)))
    return torch.cat(all_points), torch.cat(all_labels)


def load_modelnet40(folder: str | os.PathLike, split: Literal["train", "test"]) -> tuple[torch.Tensor, torch.Tensor]:
    """
    ModelNet40 from its HDF5 release, the files `ply_data_train*.h5` and `ply_data_test*.h5` with 2048 points a cloud.

    Returns:
        As `load_point_clouds`.

    Raises:
        FileNotFoundError: if the folder has no files of this split.
    """
    files = visible_files(folder, f"ply_data_{split}*.h5")
    if not files:
        raise FileNotFoundError(f"There are no files ply_data_{split}*.h5 in {folder}.")
    return load_point_clouds(*files)


def normalize_to_unit_sphere(points: torch.Tensor) -> torch.Tensor:
    """`[..., points, channels]` with each cloud's mean at the origin and its farthest point at distance 1."""
    coordinates, features = points[..., :3], points[..., 3:]
    coordinates = coordinates - coordinates.mean(-2, keepdim=True)
    radius = coordinates.norm(dim=-1).amax(-1)[..., None, None]
    # clouds whose points are all the same stay at the origin instead of becoming NaN
    coordinates = coordinates / radius.clamp_min(torch.finfo(points.dtype).tiny)
    return torch.cat([coordinates, features], dim=-1)


def scale_and_translate(
    points: torch.Tensor, scale: tuple[float, float] = (2 / 3, 3 / 2), translation: float = 0.2
) -> torch.Tensor:
    """
    The usual augmentation: a random factor and a random shift for each axis of each cloud.

    Args:
        points: `[..., points, channels]`; only coordinates change.
        scale: smallest and largest factor.
        translation: largest shift, in either direction.
    """
    # one of each per cloud and axis, [..., 1, 3]; filled in place to keep dtype and device
    factors, shifts = (points.new_empty(*points.shape[:-2], 1, 3) for _ in range(2))
    factors.uniform_(*scale)
    shifts.uniform_(-translation, translation)
    return torch.cat([points[..., :3] * factors + shifts, points[..., 3:]], dim=-1)


class PointClouds(torch.utils.data.Dataset):
    """
    Rows for `Trainer`: `points` `[num_points, channels]` and `labels`.

    Args:
        points: `[clouds, points, channels]`.
        labels: `[clouds]` (int64).
        num_points: take so many random points of a cloud, instead of all.
        transform: of a cloud, for instance `scale_and_translate`.
    """

    def __init__(
        self,
        points: torch.Tensor,
        labels: torch.Tensor,
        num_points: int | None = None,
        transform: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        if len(points) != len(labels):
            raise ValueError(f"There are {len(points)} clouds and {len(labels)} labels.")
        if num_points is not None and not 1 <= num_points <= points.shape[1]:
            raise ValueError(f"num_points is {num_points}; clouds have {points.shape[1]} points.")
        self.points = points
        self.labels = labels
        self.num_points = num_points
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        points = self.points[index]
        if self.num_points is not None:
            points = points[torch.randperm(len(points))[: self.num_points]]
        return {"points": points if self.transform is None else self.transform(points), "labels": self.labels[index]}


__all__ = [
    "SHAPES",
    "PointClouds",
    "generate_shapes",
    "load_modelnet40",
    "load_point_clouds",
    "normalize_to_unit_sphere",
    "random_rotations",
    "scale_and_translate",
]
