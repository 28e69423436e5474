"""What all benchmarks have: where and how a row was measured, tables for the terminal, and files of results."""

import datetime
import json
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table


RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    return f"{cpu.partition(': ')[2] or platform.processor()}, {torch.get_num_threads()} threads"


def facts(device: str) -> Row:
    """Where, when and by what command a row is measured."""
    return {
        "device": device_name(device),
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "torch": torch.__version__,
    }


def print_table(rows: Sequence[Row]) -> None:
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=150).print(table)


def save(
    rows: Sequence[Row], file: Path, key: Sequence[str] = (), order: Callable[[Row], Any] | None = None
) -> list[Row]:
    """
    Writes rows to a file of results and returns all that it then has.

    Args:
        rows: what was measured.
        file: JSON; its folder is made.
        key: rows of earlier runs that differ in one of these stay; without a key, none does.
        order: key to sort by.
    """
    old = json.loads(file.read_text()) if key and file.exists() else []
    merged = {tuple(row[name] for name in key) if key else number: row for number, row in enumerate([*old, *rows])}
    result = sorted(merged.values(), key=order) if order else list(merged.values())
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=2) + "\n")
    return result
