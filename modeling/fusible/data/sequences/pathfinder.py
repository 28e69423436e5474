"""
Pathfinder (https://huggingface.co/papers/2011.04006, section 2.2.5): do two dots lie on one dashed path?

Every image has two long paths and some short ones, none of which comes near another. The dots are the ends of one long
path, or ends of both. For two places of dots both cases are drawn, and a coin says which one is taken: only following
the paths tells them apart. Path-X is the same at 128 x 128 pixels.
"""

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage, ImageDraw

from ..generated import Row, generate_once


# lengths in units of 1/32 of the image, but at least of a pixel: a dash has two, a gap one
GRID = 32
WIDTH, DOT_RADIUS = 1.0, 1.25
CLEARANCE = 3.0  # between the middle lines of any two paths
MARGIN = 1.5
TURN = 0.3  # radians per unit, standard deviation
SMOOTH = 4  # drawn so many times larger, each way
SIZES = {"train": 160_000, "validation": 20_000, "test": 20_000}
FILE = "{}.parquet"


@dataclass(frozen=True)
class Drawing:
    """
    An image, and what it shows.

    Args:
        image: `[size, size]` (uint8), 0 is the background.
        paths: of each path the points `[points, 2]` (x and y in pixels), one unit apart; the two long ones first.
            Points 0, 1, 2 are a dash, so are 3, 4, 5 and so on.
        dots: `[2, 2]`, middles of the dots.
        label: 1 if the dots are on one path, otherwise 0.
    """

    image: np.ndarray
    paths: list[np.ndarray]
    dots: np.ndarray
    label: int


def _walk(
    generator: np.random.Generator, side: int, num_dashes: int, others: np.ndarray, start: np.ndarray | None
) -> np.ndarray | None:
    """A path `[3 * num_dashes, 2]` in units that is clear of all points `[others, 2]`, or `None` if it got stuck."""
    points = np.empty((3 * num_dashes, 2))
    heading = generator.uniform(0, 2 * np.pi)
    for number in range(len(points)):
        if number == 0:
            # eight candidates, of which the first free one is taken; a given start is the only one
            headings = np.full(8, heading)
            candidates = generator.uniform(MARGIN, side - MARGIN, (8, 2)) if start is None else start[None]
        else:
            # the last candidates turn more, to get out of corners that the usual turns do not leave
            headings = heading + TURN * generator.standard_normal(8) * (1, 1, 1, 1.5, 1.5, 2, 2, 2)
            candidates = points[number - 1] + np.stack([np.cos(headings), np.sin(headings)], axis=-1)
        # but for its own last five points, to which a path is near of itself
        obstacles = np.concatenate([others, points[: max(0, number - 5)]])
        # [candidates, obstacles]
        away = ((candidates[:, None] - obstacles) ** 2).sum(-1) >= CLEARANCE**2
        inside = ((candidates >= MARGIN) & (candidates <= side - MARGIN)).all(-1)
        free = np.flatnonzero(away.all(-1) & inside)
        if len(free) == 0:
            return None
        points[number], heading = candidates[free[0]], headings[free[0]]
    return points


def _path(
    generator: np.random.Generator,
    side: int,
    num_dashes: int,
    others: list[np.ndarray],
    start: np.ndarray | None = None,
    tries: int = 10,
) -> np.ndarray | None:
    """A walk, after some tries."""
    obstacles = np.concatenate([np.empty((0, 2)), *others])
    walks = (_walk(generator, side, num_dashes, obstacles, start) for _ in range(tries))
    return next((walk for walk in walks if walk is not None), None)


def _long_paths(generator: np.random.Generator, side: int, num_dashes: int, label: int) -> list[np.ndarray] | None:
    """Two paths; dots are the ends of the first one, or the first points of both. `None` if one got stuck."""
    first = _path(generator, side, num_dashes, [])
    if first is None:
        return None
    # starts and ends of walks are distributed differently, so either becomes the first dot
    if generator.integers(2):
        first = first[::-1]
    # both cases are drawn whatever the label, so that neither has dots that the other could not have had
    second = _path(generator, side, num_dashes, [first])
    # starts at one dot and keeps clear of the other, where a path must start as well
    other = _path(generator, side, num_dashes, [first[-1:]], first[0])
    if second is None or other is None:
        return None
    another = _path(generator, side, num_dashes, [other], first[-1])
    if another is None:
        return None
    return [first, second] if label else [other, another]


def _render(size: int, scale: float, paths: list[np.ndarray], dots: np.ndarray) -> np.ndarray:
    picture = PILImage.new("L", (size * SMOOTH, size * SMOOTH))
    draw = ImageDraw.Draw(picture)
    for path in paths:
        # [dashes, 3, 2]; the unit from one dash's last point to the next one's first is the gap
        for dash in (path * scale * SMOOTH).reshape(-1, 3, 2):
            draw.line([tuple(point) for point in dash.tolist()], 255, round(WIDTH * scale * SMOOTH), joint="curve")
    radius = DOT_RADIUS * scale * SMOOTH
    for x, y in (dots * scale * SMOOTH).tolist():
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), 255)
    # means of SMOOTH x SMOOTH pixels, which smooth the edges that ImageDraw leaves hard
    return np.asarray(picture.reduce(SMOOTH))


def draw_pathfinder(
    generator: np.random.Generator,
    size: int = 32,
    num_dashes: int = 14,
    num_distractors: int = 4,
    distractor_dashes: int = 4,
) -> Drawing:
    """
    A random image; for the arguments see `write_pathfinder`.

    Raises:
        ValueError: if there seems to be no room for the paths.
    """
    # below 32 pixels a unit is a pixel and there are fewer of them; above, units grow
    side, scale = min(size, GRID), max(1, size / GRID)
    # before the attempts: else the label that fits more often would be more frequent
    label = int(generator.integers(2))
    for _ in range(500):
        paths = _long_paths(generator, side, num_dashes, label)
        if paths is None:
            continue
        dots = np.stack([paths[0][0], paths[0][-1] if label else paths[1][0]])
        for _ in range(num_distractors):
            # if one does not fit, the whole image starts anew
            distractor = _path(generator, side, distractor_dashes, paths, tries=30)
            if distractor is None:
                break
            paths.append(distractor)
        else:
            image = _render(size, scale, paths, dots)
            return Drawing(image, [path * scale for path in paths], dots * scale, label)
    raise ValueError(
        f"An image of {size} x {size} pixels seems to have no room for two paths of {num_dashes} dashes and "
        f"{num_distractors} of {distractor_dashes}; take fewer or shorter ones."
    )


def _make_row(seed: int, options: Mapping[str, int], number: int) -> Row:
    # a generator for each number, whichever process draws it
    drawing = draw_pathfinder(np.random.default_rng([seed, number]), **options)
    file = io.BytesIO()
    PILImage.fromarray(drawing.image).save(file, "png")
    return file.getvalue(), drawing.label


def _write(folder: Path, split: str, rows: list[Row]) -> None:
    features = Features({"image": Image(), "label": ClassLabel(names=["two paths", "one path"])})
    images = [{"bytes": image, "path": None} for image, _ in rows]
    data = Dataset.from_dict({"image": images, "label": [label for _, label in rows]}, features=features)
    data.to_parquet(folder / FILE.format(split))


def write_pathfinder(
    folder: str | os.PathLike,
    sizes: Mapping[str, int] | None = None,
    *,
    size: int = 32,
    seed: int = 0,
    num_dashes: int = 14,
    num_distractors: int = 4,
    distractor_dashes: int = 4,
    num_processes: int | None = None,
) -> None:
    """
    Generates parquet files `folder/<split>.parquet` with images (PNG) and labels, as `datasets.load_dataset` reads.

    A folder that was filled with the same settings stays as it is.

    Args:
        folder: for the files.
        sizes: number of images of each split, by default as in the Long Range Arena.
        size: height and width in pixels: 32 for Pathfinder, 128 for Path-X; 16 has room for paths of 4 dashes.
        seed: the same seed gives the same images, whatever the number of processes.
        num_dashes: of the two long paths; 6, 9 and 14 are those of the original task.
        num_distractors: number of short paths.
        distractor_dashes: dashes of a short path.
        num_processes: by default one for each core.

    Raises:
        ValueError: if there is no room for the paths, or if the folder was filled with other settings.
    """
    options = {
        "size": size,
        "num_dashes": num_dashes,
        "num_distractors": num_distractors,
        "distractor_dashes": distractor_dashes,
    }
    if size < 16 or min(num_dashes, distractor_dashes) < 1 or num_distractors < 0:
        raise ValueError(f"size must be at least 16 and paths need dashes; got {options}.")
    make_row = partial(_make_row, seed, options)
    sizes = SIZES if sizes is None else sizes
    generate_once(folder, make_row, sizes, {"data": "pathfinder", "seed": seed, **options}, _write, num_processes)


__all__ = ["Drawing", "draw_pathfinder", "write_pathfinder"]
