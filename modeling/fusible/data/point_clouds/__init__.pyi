"""Public names and their modules. Each is imported when it is first used."""

from .datasets import (
    PointClouds as PointClouds,
    generate_shapes as generate_shapes,
    load_modelnet40 as load_modelnet40,
    load_point_clouds as load_point_clouds,
    normalize_to_unit_sphere as normalize_to_unit_sphere,
    scale_and_translate as scale_and_translate,
)
