"""Which files of a folder are data, and the order of those that are numbered."""

import os
import re
from pathlib import Path


def visible_files(folder: str | os.PathLike, pattern: str = "*") -> list[Path]:
    """
    Files and folders of a pattern, in the order of their names, without what systems put beside them.

    These are hidden ones, such as `.DS_Store` and macOS's `._name` of each file, and `__MACOSX`.
    """
    return sorted(
        path
        for path in Path(folder).glob(pattern)
        if not any(part.startswith(".") or part == "__MACOSX" for part in path.relative_to(folder).parts)
    )


def number_order(path: Path) -> list[str | int]:
    """Key that sorts by the numbers in names: `out2` before `out10`."""
    # every second part is a number, so that numbers are only compared with numbers
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", path.name))]


__all__ = ["number_order", "visible_files"]
