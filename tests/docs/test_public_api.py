"""docs/api.md has the public names, and what users are shown uses no others."""

import ast
import importlib
import re
from pathlib import Path

import nbformat
import pytest

import fusible
from support.pages import PAGES, blocks
from support.paths import ROOT


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
MODULE = re.compile(r"`(fusible[\w.]*)`")
NAME = re.compile(r"`(\w+)`")


def documented() -> dict[str, set[str]]:
    """The names of each module: those of a section, or of the line of a table that begins with a module."""
    names: dict[str, set[str]] = {}
    section = ""
    for line in (ROOT / "docs" / "api.md").read_text().splitlines():
        if line.startswith("## "):
            section = line
        elif line.startswith("| `"):
            first, second = line.strip("| ").split(" | ")
            module, cell = (MODULE.search(first), second) if MODULE.search(first) else (MODULE.search(section), first)
            assert module is not None, line
            names.setdefault(module[1], set()).update(NAME.findall(cell))
    return names


def imported(text: str) -> set[tuple[str, str]]:
    """What a program imports from fusible: modules and names."""
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    found = {
        (alias.name, "") if isinstance(node, ast.Import) else (node.module or "", alias.name)
        for node in nodes
        for alias in node.names
    }
    return {pair for pair in found if pair[0].partition(".")[0] == "fusible"}


def program(file: Path) -> str:
    """The Python of a page, a notebook or a script; lines of a notebook for the shell are left out."""
    if file.suffix == ".ipynb":
        cells = [cell.source for cell in nbformat.read(file, as_version=4).cells if cell.cell_type == "code"]
        return "\n".join(re.sub(r"^[!%].*$", "", cell, flags=re.MULTILINE) for cell in cells)
    return file.read_text() if file.suffix == ".py" else "\n".join(block.text for block in blocks(file, "python"))


def test_the_package_exports_what_is_documented():
    names = documented()
    assert names.pop("fusible") == set(fusible.__all__)
    assert len(names) > 10
    for module, wanted in names.items():
        assert wanted <= set(importlib.import_module(module).__all__), module


@pytest.mark.parametrize("file", [*PAGES, *NOTEBOOKS, *EXAMPLES], ids=lambda file: file.name)
def test_what_users_are_shown_is_public(file):
    public = documented()
    for module, name in imported(program(file)):
        assert (module, name) == ("fusible", "") or name in public.get(module, ()), f"{module}.{name}"


def test_names_that_are_not_public_are_found():
    text = "import fusible.hub, torch\nif True:\n    from fusible.core import fuse_\nfrom fusible import S4Config"
    assert imported(text) == {
        ("fusible.hub", ""),
        ("fusible.core", "fuse_"),
        ("fusible", "S4Config"),
    }
