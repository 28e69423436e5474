"""The script `benchmarks/s4.py` with tiny settings: what it writes, and that it says how that was measured."""

import importlib
import json

import pytest
import torch

from support.paths import ROOT


BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    script = importlib.import_module("s4")

    def call(*arguments: object) -> list[dict]:
        folders = ["--folder", tmp_path / "results", "--data", tmp_path / "data"]
        monkeypatch.setattr("sys.argv", ["benchmarks/s4.py", *map(str, [*arguments, *folders])])
        script.main()
        mode = arguments[arguments.index("--mode") + 1]
        file = tmp_path / "results" / f"s4_{mode}_cpu.json"
        assert file.with_suffix(".png").stat().st_size > 0
        rows = json.loads(file.read_text())
        for row in rows:
            assert row["command"].startswith(f"python benchmarks/s4.py --mode {mode}")
            assert {"device", "date", "torch"} <= row.keys()
        return rows

    return call


@pytest.mark.parametrize("mode", ["digits", "listops", "pathfinder"])
def test_learning(run, mode):
    rows = run("--mode", mode, "--minutes", 0.01, "--train-size", 80, "--test-size", 40)
    assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})
    assert rows[-1]["cpu_seconds"] >= 0.6 and 0 <= rows[-1]["fused_test_accuracy"] <= 100
    # both forms are the same function: at most one answer of a tie differs
    assert abs(rows[-1]["fused_test_accuracy"] - rows[-1]["test_accuracy"]) <= 100 / 40


def test_saved_rows(tmp_path, monkeypatch):
    """Rows are replaced by those with the same key, others stay; without a key, all are replaced."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    save, file = importlib.import_module("common").save, tmp_path / "results" / "x_cpu.json"
    save([{"a": 2, "b": 1}, {"a": 1, "b": 1}], file, "a")
    expected = [{"a": 0, "b": 2}, {"a": 1, "b": 2}, {"a": 2, "b": 1}]
    assert save([{"a": 1, "b": 2}, {"a": 0, "b": 2}], file, ["a"], lambda row: row["a"]) == expected
    assert json.loads(file.read_text()) == expected
    assert save([{"a": 7}], file) == json.loads(file.read_text()) == [{"a": 7}]


def test_best_guess(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    train = [("a", 1), ("a", 1), ("a", 2), ("b", 3)]
    test = [("a", 1), ("a", 2), ("b", 3), ("b", 1)]
    assert importlib.import_module("s4").share_of_guesses(train, test) == 50


def test_generation(run):
    options = ("--width", 32, "--blocks", 1, "--memory", 2, "--repeats", 1, "--max-batch", 64, "--prompts", 32)
    rows = run("--mode", "generation", "--contexts", 32, 64, *options)
    prompts = [rows.pop() for _ in range(5)]
    assert len({row["model"] for row in prompts}) == 5 and all(row["ms_to_first_token"] > 0 for row in prompts)
    assert len(rows) == 2 * (6 + 4) and {row["context"] for row in rows} == {32, 64}
    for row in rows:
        assert row["batch_size"] == 1 or row["memory_mb"] <= 2
        assert row["tokens_per_second"] > 0
    largest = {(row["model"], row["context"]): row for row in rows if row["batch"] == "largest"}
    for name in ("GPT-2", "GPT-2, static cache"):
        one, two = largest[name, 32], largest[name, 64]
        assert two["cache_mb_per_sequence"] == 2 * one["cache_mb_per_sequence"]
    for name in ("S4, fused", "S4D, fused"):
        assert largest[name, 32]["cache_mb_per_sequence"] == largest[name, 64]["cache_mb_per_sequence"]


def test_equal_models(monkeypatch):
    """But for S4's head, the others' is their embedding."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    generation = importlib.import_module("s4_generation")
    with torch.no_grad():
        writers = generation.make_writers(256, 4, 64)
    embedding = 256 * 256
    # S4 has two, of twice the width
    counts = {
        name: about["parameters"] - embedding * (4 if "S4" in name else 1) for name, (_, about) in writers.items()
    }
    for name in ("S4, fused", "S4D, fused", "Mamba", "Mamba-2"):
        assert counts[name] / counts["GPT-2"] == pytest.approx(1, abs=0.13), counts
    assert writers["S4, fused"][0].config.fused
