"""Tables of texts in files: a row in each line, columns separated by tabs, and nothing but texts in the cells."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets


_QUOTED = re.compile(r'"((?:[^"]|"")*)"')


def _cells(line: str) -> list[str]:
    """
    The cells of a line; quotes around one are taken off, and those doubled within it halved.

    Quotes that do not enclose a cell are part of its text.
    """
    cells = line.rstrip("\r\n").split("\t")
    return [match[1].replace('""', '"') if (match := _QUOTED.fullmatch(cell)) else cell for cell in cells]


def _rows(file: str, columns: tuple[str, ...], first: int, version: tuple[int, int]) -> Iterator[dict[str, str]]:
    """Rows from line `first` on; `version` makes datasets' cache tell changed files apart."""
    # newline="\n": lines do not end at what else Python takes for an end
    with open(file, encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            if number < first:
                continue
            cells = _cells(line)
            if len(cells) != len(columns):
                raise ValueError(
                    f"Line {number} of {file} has {len(cells)} cells, not one for each of {', '.join(columns)}."
                )
            yield dict(zip(columns, cells, strict=True))


def read_tsv(file: str | os.PathLike, columns: Sequence[str] | None = None) -> datasets.Dataset:
    """
    A file of columns of texts (string) that are separated by tabs; "NA" and "007" are texts as others.

    Args:
        file: a row in each line, in UTF-8.
        columns: their names; default: those in the first line.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if a line has more or fewer cells than there are columns.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"There is no file {file}.")
    first = 1
    if columns is None:
        with open(file, encoding="utf-8", newline="\n") as lines:
            columns = _cells(lines.readline())
        first = 2
    features = datasets.Features({column: datasets.Value("string") for column in columns})
    state = os.stat(file)
    arguments = {
        "file": str(file),
        "columns": tuple(columns),
        "first": first,
        "version": (state.st_mtime_ns, state.st_size),
    }
    try:
        return datasets.Dataset.from_generator(_rows, features=features, gen_kwargs=arguments)
    except datasets.exceptions.DatasetGenerationError as error:
        # datasets wraps what the generator raises
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise


def whole_number(text: object) -> int:
    """
    A label, which may be written as 1 or 1.0.

    Raises:
        ValueError: if it is no whole number.
    """
    number = float(str(text))
    if not number.is_integer():
        raise ValueError(f"The label {text!r} is no whole number.")
    return int(number)


__all__ = ["read_tsv", "whole_number"]
