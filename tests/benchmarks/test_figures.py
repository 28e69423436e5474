"""Figures and tables of measurements: all are made from the results, and the pages hold the tables of these."""

import json

import pytest
from matplotlib import pyplot

from benchmarks import plot, tables
from benchmarks.summaries import SUMMARIES


OKABE_ITO = {"#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#000000", "#999999"}
RESULTS = sorted(plot.RESULTS.glob("*.json"))
S4_ROW = {
    "operation": "scan",
    "mode": "forward",
    "heads": 512,
    "length": 1024,
    "batch_size": 1,
    "device": "some CPU, 1 threads",
    "date": "2026-01-02",
    "command": "python benchmarks/s4_kernels.py",
    "torch": "2.13.0",
    **{
        f"{name}_ms": ms
        for name, ms in (("naive", 90.0), ("two-level", 20), ("scan", 30), ("fft", 9), ("compiled", 3))
    },
}


def footer(figure) -> str:
    return figure.get_supxlabel()


@pytest.mark.parametrize("results", RESULTS, ids=lambda path: path.stem)
def test_results_say_how_they_were_measured(results):
    for row in json.loads(results.read_text()):
        for name in ("device", "date", "command"):
            assert row[name], row
        assert row["command"].startswith("python benchmarks/")


@pytest.mark.parametrize("results", RESULTS, ids=lambda path: path.stem)
def test_every_figure_is_drawn_and_names_its_source(results):
    kind = results.stem.rpartition("_")[0]
    if kind not in plot.FIGURES:
        assert not results.with_suffix(".png").exists(), "nothing draws this figure"
        return
    rows = json.loads(results.read_text())
    figure = plot.FIGURES[kind](rows)
    for text in (rows[0]["device"], rows[0]["date"], " ".join(rows[0]["command"].split()[:2])):
        assert text in footer(figure)
    assert all(axis.get_title() or axis.get_xlabel() for axis in figure.axes)
    pyplot.close(figure)


def test_all_figures_are_written(tmp_path, monkeypatch):
    for file in RESULTS:
        (tmp_path / file.name).write_text(file.read_text())
    (tmp_path / "s4_kernels_cpu.json").write_text(json.dumps([S4_ROW, S4_ROW | {"length": 4096}]))
    monkeypatch.setattr("sys.argv", ["plot.py", "--folder", str(tmp_path)])
    plot.main()
    drawn = {file.stem for file in tmp_path.glob("*.png")}
    expected = {file.stem for file in RESULTS if file.stem.rpartition("_")[0] in plot.FIGURES}
    assert drawn == expected | {"s4_kernels_cpu", "overview_cpu"}
    for file in tmp_path.glob("*.png"):
        image = pyplot.imread(file)
        assert (image[[0, 0, -1, -1], [0, -1, 0, -1]] == 1).all(), "white and opaque, for dark pages too"
        assert image[..., :3].min() < 0.5


def test_figures_shown_are_drawn_by_the_script():
    shown = {path.name for path in plot.RESULTS.glob("*.png")}
    devices = {file.stem.rpartition("_")[2] for file in RESULTS}
    known = {f"{kind}_{device}.png" for kind in [*plot.FIGURES, "overview"] for device in devices}
    assert shown <= known


def test_overview_is_of_the_results():
    rows = json.loads((plot.RESULTS / "zeroi2v_speed_cpu.json").read_text())
    summary = SUMMARIES["zeroi2v_speed"](rows)
    assert summary.method == "ZeroI2V" and summary.rows == rows
    assert summary.relative("time") == (rows[1]["ms"] / rows[0]["ms"], rows[2]["ms"] / rows[0]["ms"])
    assert summary.relative("parameters")[1] == rows[2]["parameters"] / rows[0]["parameters"]


def test_colors_are_those_for_color_blind_people():
    used = {value for name, value in vars(plot).items() if name.isupper() and str(value).startswith("#")}
    assert used and used <= OKABE_ITO


def test_unknown_results_are_refused(tmp_path):
    (tmp_path / "unknown_cpu.json").write_text("[]")
    with pytest.raises(KeyError, match="unknown"):
        plot.draw(tmp_path / "unknown_cpu.json")


@pytest.mark.parametrize("page", tables.pages(), ids=lambda page: page.name)
def test_tables_are_up_to_date(page):
    text = page.read_text()
    assert tables.fill(text) == text, "run python benchmarks/tables.py"


def test_tables(tmp_path):
    (tmp_path / "s4_kernels_cpu.json").write_text(json.dumps([S4_ROW, S4_ROW | {"heads": 128}]))
    page = "before\n<!-- table: s4_kernels -->\nold\n<!-- end of table -->\nafter\n"
    filled = tables.fill(page, tmp_path)
    assert "| scan | forward | 512 | 1024 | 1 | 1 | 90 | 20 | 30 | 9 | 3 |" in filled
    assert "some CPU, 1 threads; torch 2.13.0; 2026-01-02:\n\n- `python benchmarks/s4_kernels.py`" in filled
    assert "128" not in filled and "old" not in filled and filled.startswith("before\n") and filled.endswith("after\n")
    assert "Not measured yet" in tables.fill(page.replace("s4_kernels", "ewa_speed"), tmp_path)
