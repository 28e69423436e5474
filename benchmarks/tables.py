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


ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PLACE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
Rows = list[dict[str, Any]]
# title -> its cell
Columns = dict[str, Callable[[dict[str, Any]], str]]


def ratio(above: str, below: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: f"{row[above] / row[below]:.2f}"


def milliseconds(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: f"{row[name]:.3g}" if row[name] < 100 else f"{row[name]:.0f}"


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
# name -> file, columns, and which rows
TABLES: dict[str, tuple[str, Columns, Callable[[dict[str, Any]], bool]]] = {
    "repavit": ("repavit_cpu", REPAVIT, lambda row: row["mode"] == "inference"),
    "repavit_step": ("repavit_cpu", STEP, lambda row: row["mode"] == "step"),
    "ewa_accuracy": ("ewa_accuracy_cpu", EWA_ACCURACY, lambda row: True),
    "ewa_speed": ("ewa_speed_cpu", EWA_SPEED, lambda row: True),
    "zeroi2v_speed": ("zeroi2v_speed_cpu", ZEROI2V_SPEED, lambda row: True),
    "zeroi2v_accuracy": ("zeroi2v_accuracy_cpu", ZEROI2V_ACCURACY, lambda row: True),
    "s4_kernels": ("s4_kernels_cpu", S4_KERNELS, lambda row: True),
}


def markdown(rows: Rows, columns: Columns) -> str:
    """A table, and below it on what, when and by which commands it was measured; without columns that are empty."""
    columns = {title: cell for title, cell in columns.items() if any(cell(row) for row in rows)}
    cells = [list(columns), ["---"] * len(columns), *([cell(row) for cell in columns.values()] for row in rows)]
    lines = ["| " + " | ".join(line) + " |" for line in cells]
    return "\n".join(lines) + "\n\n" + provenance(rows) + "\n"


def provenance(rows: Rows) -> str:
    def values(name: str) -> Sequence[str]:
        return sorted({row[name] for row in rows})

    commands = "\n".join(f"- `{command}`" for command in values("command"))
    where = "; ".join([*values("device"), f"torch {', '.join(values('torch'))}", ", ".join(values("date"))])
    return f"{where}:\n\n{commands}"


def table(name: str, results: Path = RESULTS) -> str:
    """The Markdown of one of `TABLES`."""
    stem, columns, is_wanted = TABLES[name]
    file = results / f"{stem}.json"
    if not file.exists():
        return "*Not measured yet.*\n"
    return markdown([row for row in json.loads(file.read_text()) if is_wanted(row)], columns)


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
