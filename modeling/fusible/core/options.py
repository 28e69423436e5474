"""Checks of option names, with a hint at what was meant. Nothing here needs torch or transformers."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


def nearest(key: str, known: Iterable[str]) -> str:
    """A hint that names what was meant, or else all there is."""
    known = sorted(known)
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    # a nested key that was given without its section
    close = close or [name for name in known if name.rpartition(".")[2] == key][:1]
    return f"Did you mean {close[0]}?" if close else f"Known are {', '.join(known)}."


def check_keys(values: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Raises `ValueError` for the first key that is not known."""
    known = list(known)
    for key in values:
        if key not in known:
            raise ValueError(f"{where} has no {key!r}. {nearest(key, known)}")


__all__ = ["check_keys", "nearest"]
