"""Recipe files: YAML with bases, overrides and hints for unknown keys. Nothing here needs torch or transformers."""

import copy
import re
from collections.abc import Iterable, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import yaml


RECIPE_NAME = "recipe.yaml"


class Loader(yaml.SafeLoader):
    """
    YAML in which `no` and `off` are words, as in `save_strategy: no`; only true and false are booleans.

    A key that is there twice is an error, as in YAML's specification; PyYAML would take the last one.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # on nodes, as values have lost what was there twice, and hold what merge keys (<<) bring for keys to overrule
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.composer.ComposerError(
                        None, None, f"the key {key.value!r} is there twice", key.start_mark
                    )
                seen.add((key.tag, key.value))
        return node


# a new dictionary: the class attribute is SafeLoader's own, which other users of YAML share
Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("true|True|TRUE|false|False|FALSE"), list("tTfF"))


def read_layers(path: Path, above: tuple[Path, ...] = ()) -> list[tuple[Path, dict[str, Any]]]:
    """
    A recipe file and what it is based on.

    `base: ../_base/NAME.yaml` names a file, relative to the one that says so. Bases may have bases.

    Args:
        path: of the file.
        above: the files that are based on this one, for errors.

    Returns:
        Files and what they say besides `base`: the recipe last, and each file after its base.

    Raises:
        FileNotFoundError: if one of the files is missing.
        ValueError: if one of them is no YAML or no mapping, or if a file is its own base.
    """
    chain = (*above, path)
    if path.resolve() in (file.resolve() for file in above):
        raise ValueError(f"Recipes are based on each other in a circle: {' -> '.join(map(str, chain))}.")
    if not path.is_file():
        whose = f", the base of {above[-1]}" if above else ""
        raise FileNotFoundError(f"There is no recipe {path}{whose}.")
    try:
        with path.open(encoding="utf-8") as file:
            values = yaml.load(file, Loader) or {}
    except yaml.YAMLError as error:  # which names the file
        raise ValueError(str(error)) from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must have keys with values; it is {values!r}.")
    base = values.pop("base", None)
    if not isinstance(base, str | None):
        raise ValueError(f"base of {path} is {base!r}; it must be the path of a file, relative to this one.")
    # bases first, so that later layers win in merge
    return [*(read_layers((path.parent / base).resolve(), chain) if base is not None else []), (path, values)]


def read_recipe(path: Path) -> dict[str, Any]:
    """A recipe as a whole: what its file says on top of its bases. See `read_layers`."""
    return reduce(merge, (values for _, values in read_layers(path)))


def whole_recipe(path: Path) -> str:
    """A recipe as text that needs no other file: what is written or, if that has a base, what `read_recipe` reads."""
    if len(read_layers(path)) == 1:
        return path.read_text(encoding="utf-8")
    return yaml.safe_dump(read_recipe(path), sort_keys=False, allow_unicode=True)


def override(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """
    A copy of nested values in which `a.b=value` sets `b` in the section `a`; the value is read as YAML.

    Raises:
        ValueError: for an override without `=`, or one that leads into what is no section.
    """
    values = copy.deepcopy(values)
    for text in overrides:
        # at the first one, as values can have more of them
        path, equals, value = text.partition("=")
        if not equals or not path:
            raise ValueError(f"{text!r} is no override; write key=value, such as training.learning_rate=1e-4.")
        *sections, key = path.split(".")
        place = values
        for section in sections:
            # also a section that is written but empty, which YAML reads as null
            if place.get(section) is None:
                place[section] = {}
            place = place[section]
            if not isinstance(place, dict):
                raise ValueError(f"{text!r}: {section} is {place!r} and has no entries.")
        place[key] = yaml.load(value, Loader)
    return values


def merge(values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values with some of them changed; sections are merged, and everything else is replaced."""
    result = dict(values)
    for key, value in changes.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, Mapping):
            result[key] = merge(old, value)
        else:
            result[key] = value
    return result


__all__ = [
    "RECIPE_NAME",
    "Loader",
    "merge",
    "override",
    "read_layers",
    "read_recipe",
    "whole_recipe",
]
