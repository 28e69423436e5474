"""The notebooks run, and what is kept of their outputs is whole, in place and clean."""

import base64
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

from notebooks import execute


NOTEBOOKS = sorted(execute.FOLDER.glob("*.ipynb"))
NUM_FIGURES = {"quickstart": 1}
MACHINE_PATH = re.compile(r"/(?:home|root|tmp|Users|work|mnt|opt|usr|var|private)/|[A-Z]:\\")
PNG = "image/png"


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell: NotebookNode) -> set[str]:
    """Kinds of a cell's outputs: media types, and the names of streams."""
    return {kind for output in cell.outputs for kind in output.get("data", {output.get("name", "error"): ""})}


def text_of(cell: NotebookNode) -> str:
    """Everything that a cell shows as text."""
    data = [value for output in cell.outputs for kind, value in output.get("data", {}).items() if kind != PNG]
    return "\n".join([*data, *(output.get("text", "") for output in cell.outputs)])


@pytest.fixture(params=NOTEBOOKS, ids=lambda file: file.stem)
def file(request) -> Path:
    return request.param


@pytest.fixture
def kept(file) -> NotebookNode:
    return nbformat.read(file, as_version=4)


def test_runs_and_gives_the_kinds_of_outputs_that_are_kept(kept):
    fresh = execute.execute(kept)
    for number, (old, new) in enumerate(zip(code_cells(kept), code_cells(fresh), strict=True)):
        assert kinds(old) == kinds(new), f"code cell {number}: run make notebooks"


def test_outputs_are_clean(file, kept):
    nbformat.validate(kept)
    assert kept.metadata == execute.METADATA
    cells = code_cells(kept)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "run make notebooks"
    for cell in kept.cells:
        assert cell.metadata == {}
        assert not MACHINE_PATH.search(cell.source)
    for cell in cells:
        assert not kinds(cell) & {"error", "stderr"}
        assert not any("widget" in kind for kind in kinds(cell)), "a progress bar"
        assert not MACHINE_PATH.search(text_of(cell))
        assert len(text_of(cell)) < 4000


def test_has_figures_and_prose(file, kept):
    pictures = [
        output.data[PNG] for cell in code_cells(kept) for output in cell.outputs if PNG in output.get("data", {})
    ]
    assert len(pictures) >= NUM_FIGURES.get(file.stem, 2)
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
    assert kept.cells[0].cell_type == "markdown" and kept.cells[0].source.startswith("# ")
    assert file.stat().st_size < 600_000
    assert len(code_cells(kept)) <= 14


def test_every_notebook_has_a_place_in_the_list():
    page = (execute.FOLDER / "README.md").read_text()
    assert sorted(re.findall(r"\]\((\w+\.ipynb)\)", page)) == [file.name for file in NOTEBOOKS]


def test_kernel_is_this_interpreter_in_an_empty_folder():
    notebook = new_notebook(cells=[new_code_cell("import os, sys\nprint(sys.executable, os.listdir())")])
    (cell,) = execute.execute(notebook).cells
    assert cell.outputs[0].text == f"{sys.executable} []\n"
    assert notebook.cells[0].outputs == [], "the notebook that was given stays as it was"


def test_a_notebook_that_fails_stays_as_it_was(tmp_path, monkeypatch):
    file = tmp_path / "fails.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("1 / 0")]), file)
    before = file.read_bytes()
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        execute.execute(nbformat.read(file, as_version=4))
    monkeypatch.setattr("sys.argv", ["execute.py", str(file)])
    with pytest.raises(SystemExit, match="(?s)fails.ipynb.*ZeroDivisionError"):
        execute.main()
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]
