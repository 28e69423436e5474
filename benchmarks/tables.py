"""
Writes the tables of measurements into README.md and docs/*.md, from benchmarks/results/*.json.

    python benchmarks/tables.py

A table stands between the lines `<!-- table: NAME -->` and `<!-- end of table -->`; names are those of `TABLES`.
"""

import argparse
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from summaries import SUMMARIES, Summary


ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PLACE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
Rows = list[dict[str, Any]]
# title -> its cell
Columns = dict[str, Callable[[dict[str, Any]], str]]


def ratio(above: str, below: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: f"{row[above] / row[below]:.2f}"


def significant(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def milliseconds(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: significant(row[name])


def with_deviation(row: dict[str, Any]) -> str:
    """A mean over seeds, in as many digits as its measure has."""
    digits = 2 if row["mean"] > 1 else 4
    deviation = f" ± {row['deviation']:.{digits}f}" if row["seeds"] > 1 else ""
    return f"{row['mean']:.{digits}f}{deviation}"


def signed(value: float, error: float) -> str:
    return "" if error == 0 else f"{value:+.1f} ± {error:.1f}"


REPAVIT: Columns = {
    "model / idle ratio": lambda row: row["model"].replace("/", " / "),
    "batch": lambda row: str(row["batch_size"]),
    "dtype": lambda row: row["dtype"] + (", compiled" if row["compiled"] else ""),
    "plain, ms": milliseconds("plain_ms"),
    "training form, ms": milliseconds("training_ms"),
    "fused, ms": milliseconds("fused_ms"),
    "plain / fused": ratio("plain_ms", "fused_ms"),
    "multiply-adds": ratio("plain_macs", "fused_macs"),
}
STEP: Columns = {**{name: REPAVIT[name] for name in list(REPAVIT)[:5]}, "ratio": ratio("training_ms", "plain_ms")}
EWA_ACCURACY: Columns = {
    "data": lambda row: row["task"],
    "method": lambda row: row["method"],
    "test accuracy, %": lambda row: f"{row['accuracy']:.1f}",
    "minus dense": lambda row: signed(row["difference"], row["difference_error"]),
    "before merging, %": lambda row: "" if row["method"].startswith("dense") else f"{row['before_merging']:.1f}",
    "better pairs": lambda row: "" if row["method"] == "dense" else f"{row['wins']} of {row['seeds']}",
}
EWA_SPEED: Columns = {
    "step": lambda row: row["what"],
    "ms": milliseconds("ms"),
    "ratio to dense": lambda row: f"{row['ratio_to_dense']:.3f}",
    "parameters, M": lambda row: f"{row['parameters'] / 1e6:.1f}" if "parameters" in row else "",
}
ZEROI2V_SPEED: Columns = {
    "form": lambda row: row["form"],
    "parameters, M": lambda row: f"{row['parameters'] / 1e6:.1f}",
    "multiply-adds, G": lambda row: f"{row['macs'] / 1e9:.1f}",
    "ms": milliseconds("ms"),
    "ratio to image model": lambda row: f"{row['ratio_to_image_model']:.2f}",
}
ZEROI2V_ACCURACY: Columns = {
    "method": lambda row: row["method"],
    "seed": lambda row: str(row["seed"]),
    "test accuracy, %": lambda row: f"{row['test_accuracy']:.1f}",
    "fused, %": lambda row: f"{row['fused_test_accuracy']:.1f}",
    "trained parameters": lambda row: f"{row['trained_parameters']:,}",
}
S4_KERNELS: Columns = {
    **{name: (lambda row, name=name: str(row[name])) for name in ("operation", "mode", "heads", "length")},
    "batch": lambda row: str(row["batch_size"]),
    "threads": lambda row: row["device"].split(", ")[-1].split()[0],
    **{
        f"{name}, ms": (lambda row, name=name: milliseconds(f"{name}_ms")(row) if f"{name}_ms" in row else "")
        for name in ("naive", "two-level", "scan", "fft", "compiled", "layer")
    },
    "memory": lambda row: str(row.get("memory", "")),
}
S4_LEARNING: Columns = {
    "task": lambda row: row["task"],
    "minutes of CPU time": lambda row: f"{row['cpu_seconds'] / 60:.0f}",
    "parameters": lambda row: f"{row['parameters']:,}",
    "test accuracy, %": lambda row: f"{row['test_accuracy']:.1f}",
    "fused, %": lambda row: f"{row['fused_test_accuracy']:.1f}",
    "best guess without reading, %": lambda row: f"{row['without_reading']:.1f}",
}
S4_GENERATION: Columns = {
    "model": lambda row: row["model"],
    "context": lambda row: str(row["context"]),
    "batch": lambda row: str(row["batch_size"]),
    "tokens per second": lambda row: f"{row['tokens_per_second']:.0f}",
    "ms per step": milliseconds("ms_per_step"),
    "cache per sequence, MiB": lambda row: f"{row['cache_mb_per_sequence']:.2f}",
}
S4_PROMPTS: Columns = {
    "model": lambda row: row["model"],
    "prompt, tokens": lambda row: str(row["context"]),
    "ms to the first token": milliseconds("ms_to_first_token"),
}
TRAINING: Columns = {
    "data": lambda row: row["data"],
    "model": lambda row: row["model"],
    "batch": lambda row: str(row["batch"]),
    "workers": lambda row: str(row["workers"]),
    "loader alone, images/s": lambda row: f"{row['loader_images_per_second']:.0f}",
    "step in memory, ms": milliseconds("memory_ms_per_step"),
    "step with loader, ms": milliseconds("loader_ms_per_step"),
    "busy, %": lambda row: f"{100 * row['busy']:.1f}",
}
LOW_BITS: Columns = {
    "`ffn_norm`": lambda row: row["ffn_norm"],
    "form": lambda row: row["form"],
    "format": lambda row: row["format"],
    "size, MB": lambda row: f"{row['megabytes']:.1f}",
    "ms": milliseconds("ms"),
    "error of logits": lambda row: f"{row['error']:.2g}",
    "test accuracy, %": lambda row: f"{row['accuracy']:.1f}",
}
CONVERSION: Columns = {
    "model": lambda row: row["model"],
    "idle ratio": lambda row: f"{row['idle_ratio']:g}",
    "way": lambda row: row["way"],
    "measure": lambda row: row["measure"],
    "result": with_deviation,
    "draws": lambda row: str(row["seeds"]) if row["way"] != "dense" else "",
}
CONVERSION_COST: Columns = {
    "model": lambda row: row["model"],
    "idle ratio": lambda row: f"{row['idle_ratio']:g}",
    "conversion, s": lambda row: f"{row['conversion_seconds']:.0f}",
    "memory, GiB": lambda row: f"{row['memory_gib']:.1f}",
    "dense, ms": milliseconds("dense_ms"),
    "fused, ms": milliseconds("fused_ms"),
    "times faster": lambda row: f"{row['speedup']:.2f}",
    "multiply-adds, dense / fused": lambda row: f"{row['macs_ratio']:.2f}",
}
# name -> files, columns, and which rows
TABLES: dict[str, tuple[str, Columns, Callable[[dict[str, Any]], bool]]] = {
    "repavit": ("repavit_cpu", REPAVIT, lambda row: row["mode"] == "inference"),
    "repavit_step": ("repavit_cpu", STEP, lambda row: row["mode"] == "step"),
    "ewa_accuracy": ("ewa_accuracy_cpu", EWA_ACCURACY, lambda row: True),
    "ewa_speed": ("ewa_speed_cpu", EWA_SPEED, lambda row: True),
    "zeroi2v_speed": ("zeroi2v_speed_cpu", ZEROI2V_SPEED, lambda row: True),
    "zeroi2v_accuracy": ("zeroi2v_accuracy_cpu", ZEROI2V_ACCURACY, lambda row: True),
    "s4_kernels": (
        "s4_kernels_cpu",
        S4_KERNELS,
        # all rows, of fewer heads, more threads and sequences, are in the file
        lambda row: (row["heads"], row["batch_size"]) == (512, 1) and row["device"].endswith(", 1 threads"),
    ),
    "s4_learning": (
        "s4_digits_cpu s4_listops_cpu s4_pathfinder_cpu",
        S4_LEARNING,
        lambda row: "fused_test_accuracy" in row,  # the last one of each run
    ),
    "s4_generation": ("s4_generation_cpu", S4_GENERATION, lambda row: row["batch"] != "prompt"),
    "s4_prompts": ("s4_generation_cpu", S4_PROMPTS, lambda row: row["batch"] == "prompt"),
    "low_bits": ("low_bits_cpu", LOW_BITS, lambda row: True),
    "training": ("training_cpu", TRAINING, lambda row: True),
    "conversion": ("conversion_cpu", CONVERSION, lambda row: True),
    "conversion_short": ("conversion_cpu", CONVERSION, lambda row: row["way"].startswith(("dense", "refit"))),
    "conversion_cost": ("conversion_cost_cpu", CONVERSION_COST, lambda row: True),
}


def markdown(rows: Sequence[Any], columns: dict[str, Callable[[Any], str]]) -> str:
    """A table, without columns that are empty."""
    columns = {title: cell for title, cell in columns.items() if any(cell(row) for row in rows)}
    cells = [list(columns), ["---"] * len(columns), *([cell(row) for cell in columns.values()] for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in cells)


def provenance(rows: Rows) -> str:
    """On what, when and by which commands rows were measured."""

    def values(name: str) -> Sequence[str]:
        return sorted({row[name] for row in rows})

    commands = "\n".join(f"- `{command}`" for command in values("command"))
    where = "; ".join([*values("device"), f"torch {', '.join(values('torch'))}", ", ".join(values("date"))])
    return f"{where}:\n\n{commands}"


def read(stem: str, results: Path) -> Rows:
    file = results / f"{stem}.json"
    return json.loads(file.read_text()) if file.exists() else []


def overview(results: Path = RESULTS) -> str:
    """Times of the plain model and both forms, and parameters, one row per method."""
    summaries = [summary(rows) for kind, summary in SUMMARIES.items() if (rows := read(f"{kind}_cpu", results))]
    columns: dict[str, Callable[[Summary], str]] = {
        "method": lambda summary: summary.method,
        "what": lambda summary: " ".join(summary.setting.split()),
        "plain, ms": lambda summary: significant(summary.plain["ms"]),
        "training form, ms": lambda summary: significant(summary.training["ms"]) if summary.training else "",
        "inference form, ms": lambda summary: significant(summary.fused["ms"]),
        "plain / inference": lambda summary: f"{summary.plain['ms'] / summary.fused['ms']:.2f}",
    }
    return (
        markdown(summaries, columns) + "\n" + provenance([row for summary in summaries for row in summary.rows]) + "\n"
    )


def table(name: str, results: Path = RESULTS) -> str:
    """The Markdown of one of `TABLES`, or of the overview."""
    if name == "overview":
        return overview(results)
    stems, columns, is_wanted = TABLES[name]
    rows = [row for stem in stems.split() for row in read(stem, results) if is_wanted(row)]
    return f"{markdown(rows, columns)}\n{provenance(rows)}\n" if rows else "*Not measured yet.*\n"


def fill(text: str, results: Path = RESULTS) -> str:
    """A page with its tables as they are in the results now."""
    return PLACE.sub(lambda found: f"{found[1]}{table(found[2], results)}{found[3]}", text)


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for page in pages():
        text = page.read_text()
        if fill(text) != text:
            page.write_text(fill(text))
            print(f"wrote {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
