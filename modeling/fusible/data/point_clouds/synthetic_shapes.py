"""Points that are uniform, by area, on the surfaces of simple solids around the origin."""

from collections.abc import Callable
from functools import partial

import numpy as np


Sampler = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]  # of shape [...] to points [..., 3], float64


def _direction(generator: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    vectors = generator.standard_normal((*size, 3))
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _around(radius: np.ndarray, z: np.ndarray, angle: np.ndarray) -> np.ndarray:
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), z], axis=-1)


def _mix(generator: np.random.Generator, areas: list[float], parts: list[np.ndarray]) -> np.ndarray:
    """Takes each point from one of the parts `[..., 3]`, with probabilities as the areas."""
    shares = np.array(areas) / sum(areas)
    choice = generator.choice(len(parts), size=parts[0].shape[:-1], p=shares)
    # all parts are drawn whole, [parts, ..., 3], of which each point takes one
    return np.take_along_axis(np.stack(parts), choice[None, ..., None], axis=0)[0]


def _disc(generator: np.random.Generator, size: tuple[int, ...], z: float) -> np.ndarray:
    # area grows with the square of the radius, so its root makes points uniform
    radius, angle = np.sqrt(generator.random(size)), generator.uniform(0, 2 * np.pi, size)
    return _around(radius, np.full(size, z), angle)


def _tube(generator: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    return _around(np.ones(size), generator.uniform(-1, 1, size), generator.uniform(0, 2 * np.pi, size))


def cylinder(generator: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    """Radius 1, height 2."""
    parts = [_tube(generator, size), _disc(generator, size, -1), _disc(generator, size, 1)]
    # areas over pi: 2 pi r h = 4 pi, and pi r^2 for each disc
    return _mix(generator, [4, 1, 1], parts)


def cone(generator: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    """Radius 1 at z = -1, tip at z = 1."""
    # uniform on the mantle: its area grows with the square of the distance from the tip
    radius = np.sqrt(generator.random(size))
    mantle = _around(radius, 1 - 2 * radius, generator.uniform(0, 2 * np.pi, size))
    # areas over pi: pi r s with the slant s = sqrt(1 + 2^2), and pi r^2
    return _mix(generator, [5**0.5, 1], [mantle, _disc(generator, size, -1)])


def torus(generator: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    """Radius 1 of the ring around the z axis, radius 0.4 of its tube."""
    turn, height = generator.uniform(0, 2 * np.pi, size), generator.uniform(0, 2 * np.pi, size)
    # area is 1 + 0.4 cos(height): what is too many on the inner side goes to the outer one
    height = np.where(generator.random(size) < (1 + 0.4 * np.cos(height)) / 2, height, np.pi - height)
    return _around(1 + 0.4 * np.cos(height), 0.4 * np.sin(height), turn)


def capsule(generator: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    """A tube of radius 1 and height 2 between two half spheres."""
    ends = _direction(generator, size)
    # pull the sphere apart at its equator to make room for the tube
    ends[..., 2] += np.sign(ends[..., 2])
    # 4 pi each: 2 pi r h with h = 2, and a whole sphere
    return _mix(generator, [1, 1], [_tube(generator, size), ends])


def hemisphere(generator: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    """The upper half of the unit sphere, closed by a disc."""
    dome = _direction(generator, size)
    dome[..., 2] = np.abs(dome[..., 2])
    # areas over pi: 2 pi r^2 and pi r^2
    return _mix(generator, [2, 1], [dome, _disc(generator, size, 0)])


def polyhedron(
    vertices: list[list[int]], faces: list[list[int]], generator: np.random.Generator, size: tuple[int, ...]
) -> np.ndarray:
    """The solid of these corners `[corners, 3]` and triangles `[triangles, 3]` of corner numbers."""
    # each [triangles, 3]
    a, b, c = np.moveaxis(np.array(vertices, dtype=float)[np.array(faces)], 1, 0)
    areas = np.linalg.norm(np.cross(b - a, c - a), axis=-1)
    face = generator.choice(len(faces), size=size, p=areas / areas.sum())
    u, v = generator.random((2, *size, 1))
    # the half of the unit square beyond the diagonal is folded back onto the triangle
    u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
    return a[face] + u * (b - a)[face] + v * (c - a)[face]


def _quads(*corners: list[int]) -> list[list[int]]:
    return [triangle for p, q, r, s in corners for triangle in ([p, q, r], [p, r, s])]


_CUBE = [[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]
_CUBE_FACES = _quads([0, 1, 3, 2], [4, 5, 7, 6], [0, 1, 5, 4], [2, 3, 7, 6], [0, 2, 6, 4], [1, 3, 7, 5])
_TETRAHEDRON = [[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]
_OCTAHEDRON = [[-1, 0, 0], [1, 0, 0], [0, -1, 0], [0, 1, 0], [0, 0, -1], [0, 0, 1]]
_PYRAMID = [[-1, -1, -1], [1, -1, -1], [1, 1, -1], [-1, 1, -1], [0, 0, 1]]

SHAPES: dict[str, Sampler] = {
    "sphere": _direction,
    "cube": partial(polyhedron, _CUBE, _CUBE_FACES),
    "cylinder": cylinder,
    "cone": cone,
    "torus": torus,
    "capsule": capsule,
    "hemisphere": hemisphere,
    "tetrahedron": partial(polyhedron, _TETRAHEDRON, [[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3]]),
    "octahedron": partial(polyhedron, _OCTAHEDRON, [[x, y, z] for x in (0, 1) for y in (2, 3) for z in (4, 5)]),
    "pyramid": partial(polyhedron, _PYRAMID, [[0, 1, 4], [1, 2, 4], [2, 3, 4], [3, 0, 4], *_quads([0, 1, 2, 3])]),
}

__all__ = ["SHAPES", "Sampler"]
