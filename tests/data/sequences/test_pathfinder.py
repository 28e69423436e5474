"""Pathfinder: labels follow from the paths as drawn, and from nothing simpler."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

from fusible.data.sequences.long_range_arena import load_pixels
from fusible.data.sequences.pathfinder import _make_row, draw_pathfinder, write_pathfinder


# pixels: dashes of the long paths, number of short ones and their dashes
KINDS = {16: (3, 2, 2), 32: (6, 4, 2), 64: (14, 4, 4)}
OPTIONS = ("num_dashes", "num_distractors", "distractor_dashes")


def draw(size: int, count: int) -> list:
    return [draw_pathfinder(np.random.default_rng([7, i]), size, *KINDS[size]) for i in range(count)]


@pytest.mark.parametrize("size", KINDS)
def test_dots_are_ends_of_paths(size):
    """The label says whether one path has both; no two paths come near each other, and all stay in the image."""
    unit = size / min(size, 32)
    for drawing in draw(size, 40):
        num_dashes, num_others, other_dashes = KINDS[size]
        assert [len(path) for path in drawing.paths] == [3 * num_dashes] * 2 + [3 * other_dashes] * num_others
        ends = [{tuple(path[0]), tuple(path[-1])} for path in drawing.paths[:2]]
        one, two = map(tuple, drawing.dots)
        assert one != two and {one, two} <= ends[0] | ends[1]
        assert drawing.label == any({one, two} == pair for pair in ends)
        for number, path in enumerate(drawing.paths):
            assert path.min() > 0 and path.max() < size
            others = np.concatenate(drawing.paths[:number] + drawing.paths[number + 1 :])
            assert np.linalg.norm(path[:, None] - others, axis=-1).min() >= 3 * unit - 1e-9
            np.testing.assert_allclose(np.linalg.norm(np.diff(path, axis=0), axis=-1), unit)


def test_pixels_tell_the_label_to_who_follows_them():
    """Closing the gaps of dashes joins the dots exactly if they are on one path."""
    wrong = 0
    for number in range(40):
        drawing = draw_pathfinder(np.random.default_rng([9, number]), 256)
        # dashes end 8 pixels from the next; two paths are 24 - 8 from each other, dots 24 - 10 - 4
        strokes, _ = ndimage.label(ndimage.distance_transform_edt(drawing.image < 128) <= 4.6)
        one, two = (strokes[round(y), round(x)] for x, y in drawing.dots)
        assert one and two
        wrong += (one == two) != drawing.label
    assert wrong == 0


def features(drawing) -> list[float]:
    """Brightness, and where the dots are."""
    image, (one, two) = drawing.image / 255, drawing.dots
    border = [min(*point, *(len(image) - point)) for point in (one, two)]
    distances = [np.hypot(*(one - two)), *abs(one - two)]
    return [image.sum(), (image > 0.5).sum(), image.std(), *distances, *border, min(border), *one, *two]


def test_no_simple_feature_tells_the_label():
    drawings = draw(32, 1000)
    labels = np.array([drawing.label for drawing in drawings])
    assert abs(labels.mean() - 0.5) < 0.05  # three standard deviations
    found = np.array([features(drawing) for drawing in drawings])
    scaled = (found - found.mean(0)) / found.std(0)
    for name, classifier in {
        "linear": LogisticRegression(max_iter=1000),
        "trees": HistGradientBoostingClassifier(max_depth=3, max_iter=25),
    }.items():
        accuracy = cross_val_score(classifier, scaled, labels, cv=5).mean()
        assert accuracy < 0.56, name
    # and such a test would notice: the same classifier finds a feature that does depend on the label
    hint = np.column_stack([scaled, labels + 1.5 * np.random.default_rng(0).standard_normal(len(labels))])
    assert cross_val_score(LogisticRegression(max_iter=1000), hint, labels, cv=5).mean() > 0.57


def test_files_do_not_depend_on_processes(tmp_path):
    options = dict(zip(OPTIONS, KINDS[16], strict=True))
    for processes in (1, 2):
        sizes = {"train": 30, "test": 10}
        write_pathfinder(tmp_path / str(processes), sizes, size=16, num_processes=processes, **options)
    names = {"train.parquet", "test.parquet", "generated.json"}
    assert {file.name for file in (tmp_path / "1").iterdir()} == names
    for split, first in (("train", 0), ("test", 30)):
        one, two = (load_pixels(str(tmp_path / name), split) for name in ("1", "2"))
        assert one.features["labels"].names == ["two paths", "one path"]
        for number, (a, b) in enumerate(zip(one, two, strict=True)):
            png, label = _make_row(0, {"size": 16, **options}, first + number)
            expected = np.asarray(Image.open(io.BytesIO(png)), dtype=np.float32)[None] / 255
            assert a["labels"] == b["labels"] == label
            torch.testing.assert_close(a["pixel_values"], torch.from_numpy(expected))
            assert torch.equal(a["pixel_values"], b["pixel_values"])
    with pytest.raises(ValueError, match=r"other options \(num_dashes\)"):
        write_pathfinder(tmp_path / "1", sizes, size=16, **options | {"num_dashes": 2})


@pytest.mark.parametrize(
    ("options", "message"),
    [({"size": 8}, "at least 16"), ({"num_dashes": 0}, "need dashes"), ({"size": 16, "num_dashes": 40}, "no room")],
)
def test_errors(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        write_pathfinder(tmp_path / "a", {"train": 1}, num_processes=1, **options)
    assert list(tmp_path.iterdir()) == []
