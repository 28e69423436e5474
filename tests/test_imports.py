"""Imports run one way: the parts that write to the Hub know no model, and the library knows no command line."""

import ast
from pathlib import Path

import pytest

import fusible


PACKAGE = Path(fusible.__file__).parent
HUB = ("_auto", "checkpoints", "folders", "form_facts", "hub", "kernel_repository", "publishing", "saving")


def imports(file: Path) -> set[Path]:
    """The files of the package that a file imports, in functions as well."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = file.parents[node.level - 1]
            names = [node.module.replace(".", "/")] if node.module else [alias.name for alias in node.names]
            found |= {folder / f"{name}.py" for name in names}
    return {path for path in found if path.is_file()}


def closure(name: str) -> set[str]:
    """Names of all modules that come with one."""
    (file,) = PACKAGE.rglob(f"{name}.py")
    files, new = {file}, {file}
    while new := set().union(*map(imports, new)) - files:
        files |= new
    return {path.stem for path in files}


@pytest.mark.parametrize("name", HUB)
def test_what_writes_to_the_hub_takes_any_model(name):
    assert closure(name) <= set(HUB)


def test_the_library_does_not_import_the_command_line():
    above = {path for path in PACKAGE.rglob("*.py") if path.stem.partition("_")[0] in ("cli", "commands", "demo")}
    assert len(above) > 5
    for file in set(PACKAGE.rglob("*.py")) - above:
        assert not imports(file) & above, file


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("modeling_s4", {"backbones", "backbone_configuration"}),
        ("modeling_repavit", {"configuration_point_vit", "embeddings_point_vit", "modeling_point_vit"}),
        ("modeling_ewa", {"configuration_point_vit"}),
    ],
)
def test_models_are_saved_without_the_code_of_others(name, absent):
    names = closure(name)
    assert names > {name, "fusion"} and not names & absent
