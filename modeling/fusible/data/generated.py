"""Data sets generated once: a row for each number, by all processes, in folders that are whole or not there."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from rich.progress import track

from ..core.machine import usable_cores
from ..hub.atomic import atomic_folder


Row = tuple[str | bytes, int]  # what the model is to read, and its label
RECORD = "generated.json"


def distinct_rows(make_row: Callable[[int], Row], count: int, num_processes: int | None = None) -> Iterator[Row]:
    """
    The first `count` of `make_row(0)`, `make_row(1)`, ... that differ, in this order whatever the number of processes.

    Args:
        make_row: a picklable function whose result depends on the number only.
        count: of rows.
        num_processes: by default one for each core that this process may use; 1 for this process.

    Raises:
        ValueError: if most rows are equal to others.
    """
    if num_processes is None:
        num_processes = usable_cores()
    seen: set[str | bytes] = set()
    first = 0
    pool = ProcessPoolExecutor(num_processes) if num_processes > 1 else None
    try:
        while missing := count - len(seen):
            # as many as are missing: no more rows than wanted come, however many of them are equal
            numbers = range(first, first + missing)
            # large enough that sending does not count, small enough that processes end at about the same time
            size = max(1, min(64, missing // (4 * num_processes)))
            # pool.map keeps the order of the numbers, so that rows do not depend on the processes' speed
            for row in map(make_row, numbers) if pool is None else pool.map(make_row, numbers, chunksize=size):
                if row[0] not in seen:
                    seen.add(row[0])
                    yield row
            first += missing
            # a space of too few rows would otherwise be searched for ever
            if first > 20 * count + 1000:
                raise ValueError(f"Of {first} rows only {len(seen)} differ; {count} are wanted.")
    finally:
        if pool is not None:
            # also when the consumer stops early or fails: a generator is then closed
            pool.shutdown(cancel_futures=True)


def generate_once(
    folder: str | os.PathLike,
    make_row: Callable[[int], Row],
    sizes: Mapping[str, int],
    options: Mapping[str, Any],
    write: Callable[[Path, str, list[Row]], None],
    num_processes: int | None = None,
) -> None:
    """
    Fills a folder with splits that have no row in common, unless it was filled with the same options before.

    Args:
        folder: appears when all is written.
        make_row: see `distinct_rows`.
        sizes: number of rows of each split.
        options: everything else that the rows follow from; `generated.json` keeps them.
        write: called with a folder, the name of a split and its rows.
        num_processes: see `distinct_rows`.

    Raises:
        ValueError: if the folder was filled with other options.
    """
    # through JSON, which turns tuples into lists, to be comparable with what was read
    wanted = json.loads(json.dumps({**options, "sizes": dict(sizes)}))
    if _is_there(Path(folder), wanted):
        return
    total = sum(sizes.values())
    # one stream for all splits, so that no row is in two of them
    rows = iter(track(distinct_rows(make_row, total, num_processes), f"generating {folder}", total))
    try:
        # the record comes last: where it is, the splits are whole
        with atomic_folder(folder, lambda name: False, last=RECORD) as stage:
            for split, size in sizes.items():
                write(stage, split, list(islice(rows, size)))
            (stage / RECORD).write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
    except OSError:
        if not _is_there(Path(folder), wanted):  # where another process was faster, all is well
            raise


def _is_there(folder: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether a folder was filled; raises `ValueError` if that was with other options."""
    record = folder / RECORD
    if not record.exists():
        return False
    found = json.loads(record.read_text(encoding="utf-8"))
    if found != wanted:
        different = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        raise ValueError(
            f"{folder} was generated with other options ({', '.join(different)}); its {RECORD} has them. Give these, "
            "or another folder."
        )
    return True


__all__ = ["RECORD", "Row", "distinct_rows", "generate_once"]
