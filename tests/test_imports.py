"""Imports run one way: each part of the package imports what stands below it."""

import ast
from pathlib import Path

import pytest

import fusible
from fusible._auto import AUTO_CLASSES


PACKAGE = Path(fusible.__file__).parent
# from the bottom to the top; a folder may import itself, and what stands before it
ORDER = (
    "_version",
    "_auto",
    "kernels",
    "hub",
    "core",
    "models",
    "benchmark",
    "export",
    "stream_export",
    "error_plot",
    "saved_models",
    "recipes",
    "data",
    "training",
    "converting",
    "cli",
    "_registration",
    "__init__",
)
MODULES = {path for path in PACKAGE.rglob("*.py") if not path.is_relative_to(PACKAGE / "kernels" / "s4")}


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(file: Path) -> set[Path]:
    """The files of the package that a file imports, in functions and by `importlib` as well."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = file.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            names = [folder] + [folder / alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [PACKAGE.parent.joinpath(*alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [PACKAGE.parent.joinpath(*str(node.module).split("."))]
        elif isinstance(node, ast.Constant) and str(node.value).startswith("fusible."):
            names = [PACKAGE.parent.joinpath(*str(node.value).split("."))]
        else:
            continue
        for name in names:
            found |= {name.with_suffix(".py"), name / "__init__.py"} & MODULES
    return found - {file}


IMPORTS = {file: imports(file) for file in MODULES}


def closure(file: Path) -> set[Path]:
    files, new = {file}, {file}
    while new := set().union(*(IMPORTS[path] for path in new)) - files:
        files |= new
    return files


@pytest.mark.parametrize("file", sorted(MODULES), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_run_downwards(file):
    position = ORDER.index(part_of(file))
    for other in IMPORTS[file]:
        assert ORDER.index(part_of(other)) <= position, f"{file} imports {other}"


def test_data_and_recipes_need_neither_each_other_nor_training():
    for file in MODULES:
        others = {"data": {"recipes", "training", "cli"}, "recipes": {"data", "training", "cli"}}.get(
            part_of(file), set()
        )
        assert others.isdisjoint(map(part_of, closure(file))), file


def test_there_is_no_circle():
    for file in MODULES:
        assert all(file not in closure(other) for other in IMPORTS[file]), file


def test_the_house_has_at_most_fourteen_floors():
    floors: dict[Path, int] = {}

    def floor(file: Path) -> int:
        if file not in floors:
            floors[file] = 1 + max(map(floor, IMPORTS[file]), default=0)
        return floors[file]

    assert max(map(floor, MODULES)) <= 14
    assert len(list(PACKAGE.glob("*.py"))) <= 10


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("modeling_s4", {"backbones", "backbone_configuration"}),
        ("modeling_repavit", {"configuration_point_vit", "embeddings", "modeling_point_vit"}),
        ("modeling_ewa", {"configuration_point_vit"}),
    ],
)
def test_models_are_saved_without_the_code_of_others(name, absent):
    (file,) = PACKAGE.rglob(f"{name}.py")
    names = {path.stem for path in closure(file)}
    assert not names & absent
    assert {"cli", "training", "data", "recipes"}.isdisjoint(map(part_of, closure(file)))


def test_every_model_type_has_its_modules():
    for model_type in AUTO_CLASSES:
        (modeling,) = PACKAGE.rglob(f"modeling_{model_type}.py")
        assert (modeling.parent / f"configuration_{model_type}.py").is_file()
