"""Point clouds: where generated points lie, what files may hold, what augmentation does."""

import math
import sys

import h5py
import numpy as np
import pytest
import torch

from fusible.data.point_clouds.datasets import (
    SHAPES,
    PointClouds,
    generate_shapes,
    load_modelnet40,
    load_point_clouds,
    normalize_to_unit_sphere,
    random_rotations,
    scale_and_translate,
)


EXACT = {"noise": 0.0, "rotation": None, "scale": (1.0, 1.0)}


def points_of(shape: str, num_points: int = 20_000) -> torch.Tensor:
    return generate_shapes(1, num_points, shapes=[shape], **EXACT)[0][0].double()


def from_planes(points, planes):
    """Largest signed distance to the planes `(normal, offset)`: 0 on the surface of the solid that they bound."""
    normals = torch.tensor([normal for normal, _ in planes], dtype=torch.float64)
    offsets = torch.tensor([offset for _, offset in planes], dtype=torch.float64)
    lengths = normals.norm(dim=-1)
    return ((points @ normals.T - offsets) / lengths).amax(-1)


def signs(*lengths):
    return [
        list(s) for s in torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]) * length for length in lengths]).tolist()
    ]


def distance(shape, points):
    """Distance of points to a shape's surface, from its definition."""
    x, y, z = points.unbind(-1)
    radius = torch.hypot(x, y)
    if shape == "sphere":
        return points.norm(dim=-1) - 1
    if shape == "cube":
        return points.abs().amax(-1) - 1
    if shape == "cylinder":
        return torch.maximum(radius, z.abs()) - 1
    if shape == "cone":
        return torch.maximum((2 * radius + z - 1) / 5**0.5, -1 - z)
    if shape == "torus":
        return torch.hypot(radius - 1, z) - 0.4
    if shape == "capsule":
        return torch.hypot(radius, (z.abs() - 1).clamp_min(0)) - 1
    if shape == "hemisphere":
        return torch.maximum(points.norm(dim=-1) - 1, -z)
    if shape == "tetrahedron":
        return from_planes(points, [(n, 1) for n in signs(1, 1, 1) if math.prod(n) < 0])
    if shape == "octahedron":
        return from_planes(points, [(n, 1) for n in signs(1, 1, 1)])
    sides = [([2, 0, 1], 1), ([-2, 0, 1], 1), ([0, 2, 1], 1), ([0, -2, 1], 1)]
    return from_planes(points, [*sides, ([0, 0, -1], 1)])


@pytest.mark.parametrize("shape", SHAPES)
def test_points_lie_on_the_surface(shape):
    assert distance(shape, points_of(shape)).abs().max() < 1e-6


def share(condition):
    return condition.double().mean().item()


@pytest.mark.parametrize(
    ("shape", "part", "expected"),
    [
        ("sphere", lambda p: p[:, 2] > 0.5, 0.25),
        ("cube", lambda p: p[:, 0] > 1 - 1e-6, 1 / 6),
        ("cylinder", lambda p: p[:, 2].abs() > 1 - 1e-6, 2 / 6),
        ("cylinder", lambda p: torch.hypot(p[:, 0], p[:, 1]) < 0.5, 2 / 6 / 4),
        ("cone", lambda p: p[:, 2] < -1 + 1e-6, 1 / (1 + 5**0.5)),
        ("cone", lambda p: p[:, 2] > 0, 5**0.5 / 4 / (1 + 5**0.5)),
        ("torus", lambda p: torch.hypot(p[:, 0], p[:, 1]) > 1, 0.5 + 0.4 / math.pi),
        ("capsule", lambda p: p[:, 2] > 1, 0.25),
        ("hemisphere", lambda p: p[:, 2] < 1e-6, 1 / 3),
        ("tetrahedron", lambda p: p.sum(-1) < -1 + 1e-6, 1 / 4),
        ("octahedron", lambda p: (p > 0).all(-1), 1 / 8),
        ("pyramid", lambda p: p[:, 2] < -1 + 1e-6, 4 / (4 + 4 * 5**0.5)),
        ("pyramid", lambda p: p[:, 0] > p[:, 1].abs(), 1 / 4),
    ],
)
def test_points_are_uniform_by_area(shape, part, expected):
    assert share(part(points_of(shape))) == pytest.approx(expected, abs=0.015)  # four standard deviations


def test_generated_data_set():
    points, labels = generate_shapes(25, 16, seed=3)
    assert points.shape == (25, 16, 3) and points.dtype == torch.float32 and labels.dtype == torch.int64
    assert sorted(labels.bincount().tolist()) == [2] * 5 + [3] * 5
    again, other = generate_shapes(25, 16, seed=3), generate_shapes(25, 16, seed=4)
    assert torch.equal(again[0], points) and torch.equal(again[1], labels) and not torch.equal(other[0], points)


def test_noise_rotation_and_scale():
    sphere = {"num_points": 500, "shapes": ["sphere"]}
    noisy, _ = generate_shapes(20, **sphere, noise=0.02, scale=(1.0, 1.0))
    assert (noisy.norm(dim=-1) - 1).std().item() == pytest.approx(0.02, rel=0.05)
    scaled, _ = generate_shapes(200, **sphere, noise=0.0, scale=(0.5, 2.0))
    radii = scaled.norm(dim=-1)
    assert (radii.amax(-1) - radii.amin(-1)).max() < 1e-5
    assert 0.5 <= radii.min() < 0.6 and 1.9 < radii.max() <= 2.0
    upright, _ = generate_shapes(20, 500, shapes=["cube"], noise=0.0, rotation="z", scale=(1.0, 1.0))
    assert upright[..., 2].abs().max() < 1 + 1e-5 and upright[..., :2].abs().max() > 1.2
    turned, _ = generate_shapes(20, 500, shapes=["cube"], noise=0.0, scale=(1.0, 1.0))
    assert turned[..., 2].abs().max() > 1.2


@pytest.mark.parametrize("axis", ["so3", "z"])
def test_rotations_are_uniform(axis):
    rotations = torch.from_numpy(random_rotations(5000, np.random.default_rng(0), axis))
    identity = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(rotations @ rotations.mT, identity.expand(5000, 3, 3))
    torch.testing.assert_close(torch.linalg.det(rotations), torch.ones(5000, dtype=torch.float64))
    expected = torch.zeros(3, 3, dtype=torch.float64)
    expected[2, 2] = axis == "z"
    torch.testing.assert_close(rotations.mean(0), expected, atol=0.04, rtol=0)
    # the trace of uniform rotations is 1 + 2 cos(angle); its mean square is 1, or 3 about one axis
    assert rotations.diagonal(dim1=1, dim2=2).sum(-1).square().mean().item() == pytest.approx(
        1 if axis == "so3" else 3, rel=0.1
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shapes": ["blob"]}, r"shapes are \['blob'\]; give at least one of sphere, cube"),
        ({"shapes": []}, "give at least one"),
        ({"rotation": "x"}, "rotation is 'x'; it must be 'so3', 'z' or None"),
        ({"scale": (2.0, 1.0)}, "scale is .2.0, 1.0.; it must be two positive factors"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        generate_shapes(1, **options)


def write_h5(file, **arrays):
    with h5py.File(file, "w") as opened:
        for name, array in arrays.items():
            opened[name] = array


def test_modelnet40(tmp_path):
    """Numbered files of either split, with labels `[clouds, 1]` in bytes."""
    clouds = np.random.default_rng(0).standard_normal((6, 10, 3)).astype(np.float32)
    labels = np.arange(6, dtype=np.uint8)[:, None] * 40
    for name, part in (("train1", slice(2, 4)), ("train0", slice(0, 2)), ("test0", slice(4, 6))):
        write_h5(tmp_path / f"ply_data_{name}.h5", data=clouds[part], label=labels[part], normal=clouds[part])
    points, numbers = load_modelnet40(tmp_path, "train")
    assert np.array_equal(points.numpy(), clouds[:4]) and numbers.tolist() == [0, 40, 80, 120]
    assert load_modelnet40(tmp_path, "test")[1].tolist() == [160, 200] and numbers.dtype == torch.int64
    with pytest.raises(FileNotFoundError, match=r"no files ply_data_train\*.h5 in"):
        load_modelnet40(tmp_path / "elsewhere", "train")


def test_both_formats_give_the_same(tmp_path):
    clouds, labels = np.random.default_rng(0).standard_normal((4, 10, 6)), np.array([3, 1, 2, 0])
    write_h5(tmp_path / "a.h5", data=clouds, label=labels)
    np.savez(tmp_path / "a.npz", points=clouds, labels=labels)
    for file in ("a.h5", "a.npz"):
        points, numbers = load_point_clouds(tmp_path / file)
        assert points.dtype == torch.float32 and points.shape == (4, 10, 6) and numbers.tolist() == [3, 1, 2, 0]
        assert np.array_equal(points.numpy(), clouds.astype(np.float32))
    assert len(load_point_clouds(tmp_path / "a.h5", str(tmp_path / "a.npz"))[0]) == 8


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"points": np.zeros((2, 4, 3))}, "has no labels; it has points"),
        ({}, "has no points and no labels; it has nothing"),
        ({"points": np.zeros((2, 4)), "labels": np.zeros(2, int)}, r"shape \[2, 4\]; they must be floating-point"),
        ({"points": np.zeros((2, 4, 2)), "labels": np.zeros(2, int)}, "at least 3 channels"),
        ({"points": np.zeros((2, 4, 3), int), "labels": np.zeros(2, int)}, "are int64 of shape"),
        ({"points": np.zeros((2, 4, 3)), "labels": np.zeros(3, int)}, "one for each of 2 clouds"),
        ({"points": np.zeros((2, 4, 3)), "labels": np.zeros(2)}, "must be integers"),
        ({"points": np.full((2, 4, 3), np.nan), "labels": np.zeros(2, int)}, "not all finite"),
        ({"points": np.full((2, 4, 3), 1e300), "labels": np.zeros(2, int)}, "not all finite numbers of float32"),
    ],
)
def test_wrong_arrays(arrays, message, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load_point_clouds(tmp_path / "a.npz")


def test_wrong_files(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no file .*nothing\.h5"):
        load_point_clouds(tmp_path / "nothing.h5")
    with pytest.raises(ValueError, match="at least one file"):
        load_point_clouds()
    (tmp_path / "a.ply").touch()
    with pytest.raises(ValueError, match=r"neither \.h5 nor \.npz"):
        load_point_clouds(tmp_path / "a.ply")
    write_h5(tmp_path / "a.h5", points=np.zeros((1, 4, 3)))
    with pytest.raises(ValueError, match="has no data and no label; it has points"):
        load_point_clouds(tmp_path / "a.h5")
    for n in (4, 5):
        np.savez(tmp_path / f"{n}.npz", points=np.zeros((2, n, 3)), labels=np.zeros(2, int))
    with pytest.raises(ValueError, match=r"have shape \[5, 3\], those of .*4\.npz \[4, 3\]"):
        load_point_clouds(tmp_path / "4.npz", tmp_path / "5.npz")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match="pip install h5py"):
        load_point_clouds(tmp_path / "a.h5")


def test_normalizing():
    points = torch.randn(3, 50, 5, dtype=torch.float64) * 7 + 4
    normal = normalize_to_unit_sphere(points)
    torch.testing.assert_close(normal[..., :3].mean(1), torch.zeros(3, 3, dtype=torch.float64))
    torch.testing.assert_close(normal[..., :3].norm(dim=-1).amax(-1), torch.ones(3, dtype=torch.float64))
    assert torch.equal(normal[..., 3:], points[..., 3:])
    moved = torch.cat([points[..., :3] * 2 - 9, points[..., 3:]], -1)
    torch.testing.assert_close(normalize_to_unit_sphere(moved), normal)
    assert torch.equal(normalize_to_unit_sphere(torch.ones(4, 3)), torch.zeros(4, 3))


def test_augmentation():
    points = torch.randn(400, 10, 4, dtype=torch.float64)
    changed = scale_and_translate(points)
    assert torch.equal(changed[..., 3], points[..., 3])
    spans = [values[..., :3].amax(1) - values[..., :3].amin(1) for values in (points, changed)]
    factors = spans[1] / spans[0]
    shifts = changed[:, 0, :3] - factors * points[:, 0, :3]
    torch.testing.assert_close(changed[..., :3], factors[:, None] * points[..., :3] + shifts[:, None])
    assert 2 / 3 <= factors.min() < 0.68 and 1.48 < factors.max() <= 1.5
    assert -0.2 - 1e-9 <= shifts.min() < -0.19 and 0.19 < shifts.max() <= 0.2 + 1e-9
    assert scale_and_translate(points[0]).shape == (10, 4)


def test_rows_for_trainer():
    points, labels = generate_shapes(6, 32)
    rows = PointClouds(points, labels)
    assert len(rows) == 6 and torch.equal(rows[4]["points"], points[4]) and rows[4]["labels"] == labels[4]
    fewer = PointClouds(points, labels, num_points=8, transform=lambda cloud: -cloud)[2]["points"]
    assert len(fewer) == 8 and (torch.cdist(-fewer, points[2]).amin(-1) == 0).all()
    assert len(fewer.unique(dim=0)) == 8
    with pytest.raises(ValueError, match="6 clouds and 5 labels"):
        PointClouds(points, labels[:5])
    with pytest.raises(ValueError, match="num_points is 33; clouds have 32 points"):
        PointClouds(points, labels, num_points=33)
